"""Elliptical attention: queries see keys through a metric estimated from how values change between layers.

    a[t, k, e] = sum over steps s of |v[s, k, e] - v_previous[s, k, e]|
    m          = a / max over e of a        (scaling "max")
    m          = a / mean over e of a       (scaling "mean")
    w          = softmax(scale * (q * m).k)

`scope` says which steps s the sum at step t runs over: "sequence", all steps of the same sequence, for encoders;
"prefix", steps up to t, for decoders. The published code uses the whole segment in causal models too, so a model sees
its own targets; that is "sequence-leaky" here, for comparison only. Number of steps and the paper's constant delta
cancel in the scaling. The metric is a constant to back-propagation. Layer 0 has no previous values and is dot-product.

Source: Nielsen et al., "Elliptical Attention", NeurIPS 2024, arXiv 2406.13770, and its published code.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnserve.interface import check_choice
from attnserve.models.attention.dot_product import dot_product_attention, dot_product_weights
from attnserve.models.attention.packed import gather_steps, heads_per_key, scatter_steps
from attnserve.models.attention.variant import Variant

SCOPES = ("sequence", "prefix", "sequence-leaky")
SCALINGS = ("max", "mean")


@torch.no_grad()
def elliptical_metric(
    value: Float[Tensor, "T K E"],
    previous_value: Float[Tensor, "T K E"],
    slots: Int[Tensor, "B N"],
    *,
    scope: str,
    scaling: str,
) -> Float[Tensor, "T K E"]:
    """Estimate the metric of every packed row from its own sequence; 1 where no value changed (0/0 in the formula).

    Raises:
        ValueError: `scope` or `scaling` is none of `SCOPES`, `SCALINGS`.
    """
    check_choice("scope", scope, SCOPES)
    check_choice("scaling", scaling, SCALINGS)
    # In at least float32: a float16 running sum overflows on long sequences. Slots without a row read 0 and add 0,
    # so padding cannot bend the metric.
    dtype = torch.promote_types(value.dtype, torch.float32)
    change = gather_steps((value.to(dtype) - previous_value.to(dtype)).abs(), slots)
    total = change.cumsum(2) if scope == "prefix" else change.sum(2, keepdim=True).expand_as(change)
    norm = total.amax(-1, keepdim=True) if scaling == "max" else total.mean(-1, keepdim=True)
    metric = torch.where(norm > 0, total / torch.where(norm > 0, norm, 1.0), 1.0)
    return scatter_steps(metric, slots, value.shape[0]).to(value.dtype)


def elliptical_attention(
    query: Float[Tensor, "T H E"],
    key: Float[Tensor, "T K E"],
    value: Float[Tensor, "T K E"],
    previous_value: Float[Tensor, "T K E"],
    slots: Int[Tensor, "B N"],
    *,
    causal: bool,
    scope: str,
    scaling: str,
    scale: float | None = None,
    **options: Any,
) -> Float[Tensor, "T H E"]:
    """Elliptical attention in one call, for modules without rotary positions (those rotate `query * metric`).

    Raises:
        ValueError: scope "sequence" in a causal model: every step would see the future through the metric.
    """
    check_scope(scope, causal=causal)
    metric = elliptical_metric(value, previous_value, slots, scope=scope, scaling=scaling)
    return dot_product_attention(
        query * metric.repeat_interleave(heads_per_key(query, key), dim=1),
        key,
        value,
        slots,
        causal=causal,
        scale=1 / math.sqrt(query.shape[2]) if scale is None else scale,
        **options,
    )


def check_scope(scope: str, *, causal: bool) -> None:
    """Refuse scopes that leak the future, or that mean nothing, unless asked for by name."""
    check_choice("scope", scope, SCOPES)
    if causal and scope == "sequence":
        raise ValueError(
            "scope: 'sequence' lets a causal model see its own targets through the metric; "
            "expected 'prefix' (or 'sequence-leaky', for comparison with the published code), got 'sequence'"
        )
    if not causal and scope != "sequence":
        raise ValueError(f"scope: a bidirectional model sees the whole sequence; expected 'sequence', got {scope!r}")


VARIANT = Variant(
    name="elliptical",
    op="DotProductAttention",
    weighting="softmax",
    weigh=dot_product_weights,
    metric_op="EllipticalMetric",
    formula="softmax(scale * (q * m).k),  m = sum |v - v_previous|, scaled by its max or mean over the head",
    source="arXiv 2406.13770",
)
