"""Expressive attention: large for parallel and antiparallel query and key, small for orthogonal ones.

    z = scale * q.k
    u = z^2 / (1 + z^2)
    w = u / (epsilon + sum over allowed keys of u)

Equal to softmax of 2 ln|z| - ln(1 + z^2) when epsilon is 0. The weight is sharp for small scores and flat for large
ones, the reverse of softmax; it has no exponential and needs no running maximum. Additive biases (ALiBi, T5) do not
carry over: they would be squared.

Source: Gros, "Reorganizing attention-space geometry with expressive attention", arXiv 2407.18601. The paper's body
could not be read here; the formula is confirmed by its abstract (a function of the squared dot product) and by a public
re-implementation (docs/attention.md).
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnserve.models.attention.packed import attend
from attnserve.models.attention.variant import Variant


def expressive_weights(
    scores: Float[Tensor, "*heads Q K"], allowed: Bool[Tensor, "*#heads Q K"], *, epsilon: float = 0.0
) -> Float[Tensor, "*heads Q K"]:
    """Weights u / (epsilon + sum of u) over the allowed keys; a row with sum 0 is all zero.

    Computed in at least float32: squares overflow float16 at |z| = 256 and vanish below 1.7e-4.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # Beyond 1 / eps, 1 + z^2 rounds to z^2: the clamp changes nothing. Without it z^2 overflows and inf / inf is NaN.
    limit = 1 / torch.finfo(wide.dtype).eps
    square = wide.clamp(-limit, limit).square()
    # Masked by select, after the square: a large negative fill before it would give the masked key the largest weight.
    similarity = torch.where(allowed, square / (1 + square), 0.0)
    total = similarity.sum(-1, keepdim=True) + epsilon
    # The select is inside the division: after it, 0/0 would leave NaN gradients behind.
    return (similarity / torch.where(total > 0, total, 1.0)).to(scores.dtype)


expressive_attention = partial(attend, expressive_weights)

VARIANT = Variant(
    name="expressive",
    op="ExpressiveAttention",
    weighting="expressive",
    weigh=expressive_weights,
    formula="u / (epsilon + sum u),  u = z^2 / (1 + z^2),  z = scale * q.k",
    source="arXiv 2407.18601",
)
