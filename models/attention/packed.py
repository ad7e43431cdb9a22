"""Attention over a packed batch: gather the steps of every sequence, attend, scatter back.

This is the only place in `models` where padding exists. `slots [B, N]` holds the packed row of every (sequence, step)
and T where there is none; everything else works on the T rows alone.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attnserve.models.attention.variant import Weigh


def gather_steps(rows: Shaped[Tensor, "T G E"], slots: Int[Tensor, "B N"]) -> Shaped[Tensor, "B G N E"]:
    """Lay packed rows out by sequence and step; a slot without a row reads zeros."""
    padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    return padded[slots].transpose(1, 2)


def scatter_steps(
    steps: Float[Tensor, "B G N E"], slots: Int[Tensor, "B N"], num_rows: int
) -> Float[Tensor, "{num_rows} G E"]:
    """Undo `gather_steps`: what stands in a slot without a row is dropped."""
    values = steps.transpose(1, 2).flatten(0, 1)
    rows = values.new_zeros(num_rows + 1, *values.shape[1:])
    return rows.index_copy(0, slots.flatten(), values)[:num_rows]


def mean_steps(rows: Float[Tensor, "T D"], slots: Int[Tensor, "B N"]) -> Float[Tensor, "B D"]:
    """Mean over the steps of every sequence, summed in at least float32."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    total = gather_steps(wide[:, None], slots)[:, 0].sum(1)
    return (total / existing_steps(slots, rows).sum(1, keepdim=True)).to(rows.dtype)


def existing_steps(slots: Int[Tensor, "B N"], rows: Shaped[Tensor, "T ..."]) -> Int[Tensor, "B N"]:
    """1 where a slot names a row, else 0.

    Gathered: to compare `slots` with T would be work for the CPU on a GPU as well (export/bodies/packed.py).
    """
    return gather_steps(slots.new_ones(rows.shape[0], 1, 1), slots)[:, 0, :, 0]


def allowed_keys(slots: Int[Tensor, "B N"], num_rows: int, *, causal: bool, window: int = 0) -> Bool[Tensor, "B 1 N N"]:
    """Which keys (last axis) a query (axis before it) may see.

    With `window` w > 0: the w nearest keys up to itself if causal, else those nearer than w on both sides.
    """
    step = torch.arange(slots.shape[1], device=slots.device)
    distance = step[:, None] - step[None, :]
    allowed = (slots < num_rows)[:, None, None, :].expand(-1, 1, len(step), -1)
    if causal:
        allowed = allowed & (distance >= 0)
    if window > 0:
        allowed = allowed & (distance.abs() < window)
    return allowed


def heads_per_key(query: Float[Tensor, "T H E"], key: Float[Tensor, "T K E"]) -> int:
    """How many query heads read each key head.

    Raises:
        ValueError: K does not divide H. Repeating would then broadcast, or leave no heads at all.
    """
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"key: expected a number of heads that divides {query.shape[1]}, got {key.shape[1]}")
    return query.shape[1] // key.shape[1]


def attention_scores(
    query: Float[Tensor, "*batch H Q E"], key: Float[Tensor, "*batch K N E"], *, scale: float, softcap: float = 0.0
) -> Float[Tensor, "*batch H Q N"]:
    """Scores: scale * q.k in at least float32, then softcap * tanh(. / softcap) if softcap > 0.

    Half precision is widened before the product: expressive weights depend on the relative size of scores near zero,
    where float16 has no digits left.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[-3] // key.shape[-3]
    scores = scale * query.to(dtype) @ key.to(dtype).repeat_interleave(group, dim=-3).transpose(-1, -2)
    return softcap * torch.tanh(scores / softcap) if softcap > 0 else scores


def attend(
    weigh: Weigh,
    query: Float[Tensor, "T H E"],
    key: Float[Tensor, "T K E"],
    value: Float[Tensor, "T K V"],
    slots: Int[Tensor, "B N"],
    *,
    causal: bool,
    scale: float,
    epsilon: float = 0.0,
    window: int = 0,
    softcap: float = 0.0,
) -> Float[Tensor, "T H V"]:
    """Attend within each sequence of a packed batch, with any weighting; differentiable.

    Raises:
        ValueError: an option no formula has a meaning for; names it.
    """
    for option, number, least in (("scale", scale, None), ("epsilon", epsilon, 0), ("window", window, 0)):
        # Not `math.isfinite`, which torch.compile takes for torch's.
        if not abs(number) < math.inf or (least is not None and number < least):
            expected = "a finite number" if least is None else f"a finite number >= {least}"
            raise ValueError(f"{option}: expected {expected}, got {number!r}")
    group = heads_per_key(query, key)
    num_rows = query.shape[0]
    scores = attention_scores(gather_steps(query, slots), gather_steps(key, slots), scale=scale, softcap=softcap)
    allowed = allowed_keys(slots, num_rows, causal=causal, window=window)
    weights = weigh(scores, allowed, epsilon=epsilon)
    values = gather_steps(value, slots).to(weights.dtype).repeat_interleave(group, dim=1)
    return scatter_steps(weights @ values, slots, num_rows).to(value.dtype)
