"""Scores with a bias by distance, as T5's have, carried by queries and keys.

A score is q.k with a number added that depends on the head and on how far the key is from the query. So a query brings
its numbers for every step there may be, and a key a 1 at its own step: their product is the number. Nothing that
attends, captures or weighs has to know, and it costs as many multiplications per score as a sequence may have steps.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """Lengthens queries and keys by L numbers each.

    Args:
        by_distance: [2 * L - 1, H], from a key that is L - 1 steps before its query to one that is as far behind.
    """

    def __init__(self, by_distance: Float[Tensor, "D H"]) -> None:
        super().__init__()
        self.by_distance: Tensor
        self.register_buffer("by_distance", by_distance)

    @property
    def num_steps(self) -> int:
        """L."""
        return (len(self.by_distance) + 1) // 2

    def lengthen(
        self, query: Float[Tensor, "T H E"], key: Float[Tensor, "T K E"], positions: Int[Tensor, " T"], scale: float
    ) -> tuple[Float[Tensor, "T H EL"], Float[Tensor, "T K EL"]]:
        """Queries and keys whose product, times `scale`, has the bias in it."""
        steps = torch.arange(self.num_steps, device=positions.device)
        numbers = self.by_distance[steps - positions[:, None] + self.num_steps - 1].transpose(1, 2)
        own = (steps == positions[:, None]).to(key.dtype)
        return (
            torch.cat([query, numbers / scale], dim=-1),
            torch.cat([key, own[:, None].expand(-1, key.shape[1], -1)], dim=-1),
        )


def depends_on_distance(bias: Float[Tensor, "1 H N N"]) -> bool:
    """Whether all that a bias depends on, besides the head, is how far a key is from the query."""
    return torch.equal(bias[..., 1:, 1:], bias[..., :-1, :-1])


def take_biases(modules: list[nn.Module], num_steps: int) -> list[RelativeBias]:
    """The bias of each of a model's attention modules, by one that has it or by the last one before.

    The modules that have it compute it no more: they would for all rows of a batch with all others.
    """
    found: list[RelativeBias] = []
    for module in modules:
        if makes_bias(module):
            found.append(RelativeBias(_by_distance(module, num_steps)))
            vars(module)["compute_bias"] = _no_bias
        else:
            found.append(found[-1])
    return found


def makes_bias(module: nn.Module) -> bool:
    """Whether an attention module has a table of biases, as the first of T5's layers does."""
    return hasattr(module, "compute_bias") and hasattr(module, "relative_attention_bias")


@torch.no_grad()
def _by_distance(module: Any, num_steps: int) -> Tensor:
    bias = module.compute_bias(num_steps, num_steps)[0]
    # Of the last query to the keys before it, and of the first one to those behind.
    return torch.cat([bias[:, -1], bias[:, 0, 1:]], dim=1).T.contiguous()


def _no_bias(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(1, 1, 1, 1)
