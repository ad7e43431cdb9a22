"""Dot-product attention: the baseline.

    z = scale * q.k
    w = exp(z) / sum over allowed keys of exp(z)

Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnserve.models.attention.packed import attend
from attnserve.models.attention.variant import Variant


def dot_product_weights(
    scores: Float[Tensor, "*heads Q K"], allowed: Bool[Tensor, "*#heads Q K"], *, epsilon: float = 0.0
) -> Float[Tensor, "*heads Q K"]:
    """Softmax over the allowed keys; a row without any is all zero. `epsilon` has no meaning here and must be 0."""
    if epsilon != 0:
        raise ValueError(f"epsilon: dot-product attention has none; expected 0, got {epsilon}")
    # The lowest finite number, not -inf: a row without allowed keys would be NaN between the two selects, forwards and
    # backwards, and stop whoever searches for a NaN of their own (torch.autograd.detect_anomaly).
    filled = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.where(allowed, torch.softmax(filled, dim=-1), 0.0)


dot_product_attention = partial(attend, dot_product_weights)

VARIANT = Variant(
    name="dot_product",
    op="DotProductAttention",
    weighting="softmax",
    weigh=dot_product_weights,
    formula="softmax(scale * q.k)",
    source="arXiv 1706.03762, equation 1",
)
