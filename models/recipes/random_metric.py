"""Elliptical attention with a metric drawn at random: the baseline that an estimated one has to beat.

The metric of a sequence and head is uniform on [0, 1) per channel, scaled like an estimated one, and drawn anew in
every pass, training and scoring alike, as in the ablation of the published code. It cannot leak: it has seen nothing.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnserve.models.attention.packed import scatter_steps
from attnserve.models.attention.recording import attention_layers

METRICS = ("estimated", "random")


def draw_metrics(model: nn.Module, generator: torch.Generator) -> None:
    """Have every elliptical layer of `model` draw its metric instead of estimating it."""
    for layer in attention_layers(model):
        if layer.measure is not None:
            assert layer.config.scaling is not None
            layer.measure = partial(random_metric, scaling=layer.config.scaling, generator=generator)


@torch.no_grad()
def random_metric(
    value: Float[Tensor, "T K E"],
    previous_value: Float[Tensor, "T K E"],  # noqa: ARG001
    slots: Int[Tensor, "B N"],
    *,
    scaling: str,
    generator: torch.Generator,
) -> Float[Tensor, "T K E"]:
    """One metric per sequence and key head, the same at all its steps."""
    num_rows, num_heads, size = value.shape
    drawn = torch.rand(len(slots), num_heads, 1, size, generator=generator, dtype=value.dtype)
    norm = drawn.amax(-1, keepdim=True) if scaling == "max" else drawn.mean(-1, keepdim=True)
    return scatter_steps((drawn / norm).expand(-1, -1, slots.shape[1], -1), slots, num_rows)
