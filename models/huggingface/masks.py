"""Reading a mask: causal or not, with a window or not, or something that no layer here can have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """What a mask says, without its numbers."""

    causal: bool
    window: int


def read_mask(function: Callable[..., Any], mask: Tensor, horizon: int) -> Mask:
    """What a mask is: causal or not, with a window or not; window -1 where it is something else.

    Compared are all of the steps that were run, and a few rows of the longest sequence there may be.

    Args:
        function: transformers' own, of the numbers of sequence, head, query and key.
        mask: bool [1, 1, N, N] that it has made.
        horizon: length of the longest sequence.
    """
    steps = torch.arange(horizon)
    rows = torch.tensor(sorted({0, horizon // 2, horizon - 1}))
    zero = torch.zeros((), dtype=torch.long)
    try:
        far = torch.as_tensor(function(zero, zero, rows[:, None], steps[None, :])).expand(len(rows), horizon)
    except Exception:
        return Mask(causal=False, window=-1)
    causal = not bool(mask[0, 0].triu(1).any())
    # How many keys up to itself the last query sees: all, or a window of them.
    reach = int(far[-1].sum())
    found = Mask(causal=causal, window=0 if reach == horizon else reach)
    near = torch.arange(mask.shape[-1])
    same = torch.equal(mask[0, 0], _allowed(near, near, found)) and torch.equal(far, _allowed(rows, steps, found))
    return found if same else Mask(causal=False, window=-1)


def _allowed(queries: Tensor, keys: Tensor, mask: Mask) -> Tensor:
    distance = queries[:, None] - keys[None, :]
    allowed = distance >= 0 if mask.causal else torch.ones_like(distance, dtype=torch.bool)
    return allowed & (distance.abs() < mask.window) if mask.window else allowed
