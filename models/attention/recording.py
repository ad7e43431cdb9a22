"""Recording: the weights a model attends with, taken where the exporter takes hold of it too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from attnserve.models.attention.layer import Attention
from attnserve.models.attention.packed import allowed_keys, attention_scores, gather_steps


@contextmanager
def recorded_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights [B, H, N, N] of every attention call in `model`, in the order of the calls.

    Query and key arrive at `attend` with metric and rotation folded in.
    """
    collected: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    originals = [layer.attend for layer in layers]
    try:
        for layer, original in zip(layers, originals, strict=True):
            layer.attend = partial(_record, collected, layer, original)
        yield collected
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.attend = original


def _record(
    collected: list[Tensor],
    layer: Attention,
    original: Callable[..., Tensor],
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
