"""Taking hold of a model from outside: what its heads do, recorded or scaled, whatever module is around them.

The exporter uses the same seams: `Attention.attend`, and hooks on the blocks.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from attnserve.models.attention.layer import Attention
from attnserve.models.attention.packed import allowed_keys, attention_scores, gather_steps

Attend = Callable[..., Tensor]
"""(query, key, value, slots) -> [T, H, V]"""


def attention_layers(model: nn.Module) -> list[Attention]:
    """The `Attention` modules of `model`, in the order they were registered."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextmanager
def replaced_attend(model: nn.Module, replace: Callable[[int, Attention], Attend]) -> Iterator[None]:
    """Put `replace(index, layer)` in the place of every layer's `attend`, and the originals back afterwards."""
    layers = attention_layers(model)
    originals = [layer.attend for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer.attend = replace(index, layer)
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.attend = original


@contextmanager
def recorded_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights [B, H, N, N] of every attention call in `model`, in the order of the calls.

    Query and key arrive at `attend` with metric and rotation folded in.
    """
    collected: list[Tensor] = []
    with replaced_attend(model, lambda _, layer: partial(_record, collected, layer, layer.attend)):
        yield collected


@contextmanager
def scaled_heads(model: nn.Module, head_scale: Float[Tensor, "L H"]) -> Iterator[None]:
    """Multiply every head's output by its number in `head_scale`; 0 takes the head away (ablation)."""
    num_layers = len(attention_layers(model))
    if len(head_scale) != num_layers:
        raise ValueError(f"head_scale: expected {num_layers} rows, one per layer, got {len(head_scale)}")
    with replaced_attend(model, lambda index, layer: partial(_scale, head_scale[index], layer.attend)):
        yield


@contextmanager
def recorded_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what each of `modules` returns, in the order of the calls; of a tuple, its first tensor."""
    collected: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        collected.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _scale(factors: Float[Tensor, " H"], original: Attend, *arguments: Tensor) -> Tensor:
    attended = original(*arguments)
    return attended * factors.to(attended.dtype)[:, None]


def _record(
    collected: list[Tensor],
    layer: Attention,
    original: Attend,
    query: Float[Tensor, "T H E"],
    key: Float[Tensor, "T K E"],
    value: Float[Tensor, "T K V"],
    slots: Int[Tensor, "B N"],
) -> Tensor:
    config = layer.config
    scores = attention_scores(
        gather_steps(query, slots), gather_steps(key, slots), scale=layer.scale, softcap=config.softcap
    )
    allowed = allowed_keys(slots, len(query), causal=layer.causal, window=config.window)
    collected.append(layer.variant.weigh(scores, allowed, epsilon=config.epsilon))
    return original(query, key, value, slots)
