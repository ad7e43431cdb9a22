"""The functions that transformers calls for attention and for masks, by the names that `register` gives them.

Outside of a packed batch they are ordinary padded attention with boolean masks: the path of training. Inside of one
(`taken`) they hand every call to an `Attention` of ours, and masks are left to its op.

Shape letters as in `attnserve.models.attention.packed`; here B sequences are padded to N steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from attnserve.models.attention import VARIANTS
from attnserve.models.attention.elliptical import elliptical_metric
from attnserve.models.attention.packed import attention_scores
from attnserve.models.huggingface.settings import Settings, read_settings
from attnserve.models.huggingface.values import previous_values

NAMES = {"dot_product": "attnserve", "expressive": "expressive", "elliptical": "elliptical"}
"""What transformers calls each variant. Names with `flash`, `sdpa`, `/` or `|` in them mean something to it."""

Attended = tuple[Tensor, Tensor | None]
"""What transformers expects: output [B, N, H, V], and weights [B, H, N, N] where there are any."""
Seat = Callable[..., Attended]

_SEAT: ContextVar[Seat | None] = ContextVar("seat", default=None)
_MASK: ContextVar[Callable[..., Tensor | None] | None] = ContextVar("mask", default=None)


def register() -> None:
    """Tell transformers of `attnserve` (dot-product), `expressive` and `elliptical`; again if it knows them already.

    `from_pretrained(folder, attn_implementation="expressive")` trains with expressive attention from then on.
    """
    for variant, name in NAMES.items():
        AttentionInterface.register(name, partial(attend, variant))
        # Both, always: for a name without a mask function transformers makes no mask, and padding is attended to.
        AttentionMaskInterface.register(name, make_mask)


@contextmanager
def taken(seat: Seat, mask: Callable[..., Tensor | None]) -> Iterator[None]:
    """Have calls of the registered functions go to these instead."""
    seated, masked = _SEAT.set(seat), _MASK.set(mask)
    try:
        yield
    finally:
        _SEAT.reset(seated)
        _MASK.reset(masked)


def make_mask(*arguments: Any, **named: Any) -> Tensor | None:
    """The mask of a model's layers: bool [B, 1, N, N], true where a key is seen."""
    mask = _MASK.get()
    return plain_mask(*arguments, **named) if mask is None else mask(*arguments, **named)


def plain_mask(*arguments: Any, **named: Any) -> Tensor:
    """Never None, which would leave it to `is_causal`, of which each model has its own idea."""
    mask: Tensor | None = sdpa_mask(
        *arguments, **{**named, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )
    assert mask is not None
    return mask


def attend(
    variant: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
) -> Attended:
    """What transformers calls once per layer; rotation and norms are in query and key already."""
    seat = _SEAT.get()
    if seat is not None:
        return seat(module, query, key, value, mask, **named)
    return attend_padded(variant, module, query, key, value, mask, **named)


def attend_padded(
    variant: str,
    module: nn.Module,
    query: Float[Tensor, "B H N E"],
    key: Float[Tensor, "B K N E"],
    value: Float[Tensor, "B K N V"],
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Attended:
    """Attend over padded sequences with a mask bool [B, 1, N, N]: differentiable, and with weights for whoever asks.

    Raises:
        ValueError: the mask is no mask but a bias, or there is one beside it, which expressive weights would square; or
            some steps are in a cache, where elliptical attention cannot compare their values.
    """
    settings = read_settings(getattr(module, "config", None)) or Settings(variant=variant)
    if settings.variant != variant:
        settings = Settings(variant=variant)
    if mask is None:
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)[None, None]
        mask = mask.tril() if causal else mask
    if mask.dtype != torch.bool:
        raise ValueError(f"attention_mask: expected which keys are seen, got a bias of {mask.dtype}")
    if position_bias is not None and variant != "dot_product":
        raise ValueError(f"position_bias: expected none with {variant} attention, got one")
    group = query.shape[1] // key.shape[1]
    if variant == "elliptical" and query.shape[2] != key.shape[2]:
        raise ValueError(f"use_cache: expected False with elliptical attention, got {key.shape[2]} steps of keys")
    previous = previous_values(module, value) if variant == "elliptical" else None
    if previous is not None:
        exists = mask.diagonal(dim1=-2, dim2=-1)[:, 0].expand(len(value), -1)
        metric = _measure(value, previous, exists, scope=str(settings.scope), scaling=str(settings.scaling))
        query = query * metric.repeat_interleave(group, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = attention_scores(query, key, scale=scale, softcap=softcap or 0.0)
    scores = scores if position_bias is None else scores + position_bias
    weights = VARIANTS[variant].weigh(scores, mask, epsilon=settings.epsilon)
    dropped = functional.dropout(weights, dropout, module.training).to(value.dtype)
    attended = dropped @ value.repeat_interleave(group, dim=1)
    return attended.transpose(1, 2).contiguous(), weights


def _measure(
    value: Float[Tensor, "B K N E"], previous: Float[Tensor, "B K N E"], exists: Bool[Tensor, "B N"], **how: str
) -> Float[Tensor, "B K N E"]:
    """The metric of padded sequences, by the formula for packed ones."""
    batch, _, steps, _ = value.shape
    num_rows = batch * steps
    rows, previous_rows = (one.transpose(1, 2).flatten(0, 1) for one in (value, previous))
    row = torch.arange(num_rows, device=value.device).view(batch, steps)
    metric = elliptical_metric(rows, previous_rows, torch.where(exists, row, num_rows), **how)
    by_step: Tensor = metric.view(batch, steps, *metric.shape[1:])
    return by_step.transpose(1, 2)
