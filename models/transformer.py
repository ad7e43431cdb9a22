"""`Transformer`: embed, blocks, logits, on packed rows.

Shape letters as in `models/attention/variant.py`, and: D width, R rows whose logits are wanted, L layers, W vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from attnserve.models.attention.layer import Attention, AttentionConfig
from attnserve.models.config import TransformerConfig
from attnserve.models.positions import AddedPositions, RotaryPositions
from attnserve.packing import pack

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one forward pass computed."""

    logits: Tensor
    """[R, W]"""
    hidden: list[Tensor]
    """The residual stream after each block, [T, D] each."""


class MultiHeadAttention(nn.Module):
    """Projections around `Attention`; returns its values too, which the next layer's metric needs."""

    def __init__(self, config: TransformerConfig, layer: AttentionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.width, config.width, bias=config.bias)
        self.key = nn.Linear(config.width, config.width, bias=config.bias)
        self.value = nn.Linear(config.width, config.width, bias=config.bias)
        self.attention = Attention(layer, head_size=config.head_size, causal=config.causal)
        self.output = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        slots: Int[Tensor, "B N"],
        previous_value: Float[Tensor, "T H V"] | None,
        rotate: Callable[[Tensor], Tensor] | None,
        head_scale: Float[Tensor, " H"] | None,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T H V"]]:
        """Attended rows, and the values they were made of."""
        query, key, value = (
            project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.query, self.key, self.value)
        )
        attended = self.attention(query, key, value, slots, previous_value=previous_value, rotate=rotate)
        if head_scale is not None:
            attended = attended * head_scale[:, None]
        return self.output(attended.flatten(1)), value


class Mlp(nn.Module):
    """up, activation, down."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_size, bias=config.bias)
        self.down = nn.Linear(config.mlp_size, config.width, bias=config.bias)
        self.activate = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Row by row."""
        rows: Tensor = self.down(self.activate(self.up(x)))
        return rows


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, layer: AttentionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=config.bias)
        self.attention = MultiHeadAttention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=config.bias)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Rows of the residual stream after this block, and its attention's values."""
        attended, value = self.attention(self.attention_norm(x), *arguments)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), value


class Transformer(nn.Module):
    """A transformer over packed sequences, for every variant, training and export alike.

    Args:
        config: what it is made of.
        seed: of the initial weights; the global random state is left as it was.
    """

    def __init__(self, config: TransformerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
            self.positions = AddedPositions(config) if config.positions in ("orthogonal", "learned") else None
            self.rotary = RotaryPositions(config) if config.positions == "rotary" else None
            self.layers = nn.ModuleList(Block(config, layer) for layer in config.attention)
            self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=config.bias)
            self.unembedding = nn.Linear(config.width, config.vocabulary_size, bias=config.bias)

    def forward(
        self,
        tokens: Int[Tensor, " T"],
        positions: Int[Tensor, " T"],
        slots: Int[Tensor, "B N"],
        rows: Int[Tensor, " R"],
        head_scale: Float[Tensor, "L H"] | None = None,
    ) -> Output:
        """Logits of `rows`, so the unembedding runs on R rows and never on all T.

        Args:
            tokens: ids of all sequences, one after the other.
            positions: step of each row within its sequence.
            slots: packed row of every (sequence, step), T where there is none (`attnserve.packing` makes them).
            rows: packed rows whose logits are wanted; may be empty.
            head_scale: factor on every head's output, for ablation; None is all ones.
        """
        x = self.token_embedding(tokens)
        if self.positions is not None:
            x = self.positions(x, positions)
        rotate = self.rotary.at(positions) if self.rotary is not None else None
        value, hidden = None, []
        for index, block in enumerate(self.layers):
            x, value = block(x, slots, value, rotate, None if head_scale is None else head_scale[index])
            hidden.append(x)
        return Output(logits=self.unembedding(self.final_norm(x[rows])), hidden=hidden)

    def _check_ids(self, field: str, sequence: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
        ids, size, longest = np.asarray(sequence), self.config.vocabulary_size, self.config.max_length
        if ids.ndim != 1 or not 1 <= len(ids) <= longest:
            raise ValueError(f"{field}: expected a list of 1 to {longest} ids, got shape {list(ids.shape)}")
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= size:
            raise ValueError(f"{field}: expected integers from 0 to {size - 1}, got others")
        return ids.astype(np.int64)

    def predict(self, sequences: Sequence[NDArray[np.int64] | Sequence[int]]) -> list[Tensor]:
        """Logits of every position of every sequence, [n, W] each, from one packed forward pass.

        Raises:
            ValueError: no sequence, or one that is empty, too long or not of ids; names it.
        """
        if not len(sequences):
            raise ValueError("sequences: expected at least one, got none")
        packed = pack([self._check_ids(f"sequences[{index}]", ids) for index, ids in enumerate(sequences)])
        device = self.token_embedding.weight.device
        tokens, positions, slots = (
            torch.from_numpy(array).to(device) for array in (packed.tokens, packed.positions, packed.slots)
        )
        output: Output = self(tokens, positions, slots, torch.arange(len(tokens), device=device))
        return list(torch.split(output.logits, packed.lengths))
