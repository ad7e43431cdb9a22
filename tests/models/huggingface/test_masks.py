"""A mask is read from the function that makes it."""

from typing import Any

import pytest
import torch

from attnserve.models.huggingface.masks import read_mask


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda b, h, q, k: k <= q, (True, 0)),
        (lambda b, h, q, k: q >= 0, (False, 0)),
        (lambda b, h, q, k: (k <= q) & (q - k < 6), (True, 6)),
        (lambda b, h, q, k: (q - k).abs() < 6, (False, 6)),
        (lambda b, h, q, k: (k <= q) & (q // 20 == k // 20), (False, -1)),
        (lambda b, h, q, k: (k <= q) | (k < 3), (False, -1)),
        (lambda b, h, q, k: (k <= q) & (k != 2), (False, -1)),
    ],
    ids=["causal", "all", "causal window", "window", "chunks beyond the run", "prefix", "hole"],
)
def test_masks_are_read(function: Any, expected: tuple[bool, int]) -> None:
    steps = torch.arange(12)
    mask = function(0, 0, steps[:, None], steps[None, :]).expand(12, 12)
    found = read_mask(function, mask[None, None], horizon=100)
    assert (found.causal, found.window) == expected
