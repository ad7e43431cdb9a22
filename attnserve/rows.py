"""Rows of attention of one sequence: which keys each may see, and their queries and keys by head.

These may be arrays or residents (`attnserve/resident.py`); so are they by head then, and so is a part of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer
from attnserve.resident import Captured, Resident, ResidentHeads

ByHead = NDArray[np.float32] | ResidentHeads
"""[heads, N, E] of captured rows."""

# Weights of one block of query rows: 1 MB in float32, which a core's cache holds.
BLOCK_NUMBERS = 1 << 18
# Fewer rows waste the product of queries and keys; beyond so many numbers, 8 MB, there are fewer all the same.
MIN_BLOCK_ROWS = 32
MAX_BLOCK_NUMBERS = 1 << 21


def visible_keys(layer: Layer, steps: NDArray[np.int64], num_keys: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last key that the rows at `steps` may see, [Q] each."""
    first = np.zeros_like(steps)
    last = steps if layer.causal else np.full_like(steps, num_keys - 1)
    if layer.window:
        first = np.maximum(steps - layer.window + 1, 0)
        last = np.minimum(last, steps + layer.window - 1)
    return first, last


def cut_rows(first: NDArray[np.int64], last: NDArray[np.int64], num_rows: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of so many rows, each with the keys that one of its rows may see; `first` and `last` of `visible_keys`."""
    for start in range(0, len(first), num_rows):
        rows = slice(start, min(start + num_rows, len(first)))
        yield rows, slice(int(first[rows].min()), int(last[rows].max()) + 1)


def rows_per_block(num_numbers: int, *, is_resident: bool = False) -> int:
    """Rows of a block whose weights a core's cache holds, if one row of all heads has so many numbers.

    Of residents it is as many as may be: on a device each block costs some launches, whatever its size.
    """
    most = MAX_BLOCK_NUMBERS // num_numbers
    return max(1, most if is_resident else min(max(MIN_BLOCK_ROWS, BLOCK_NUMBERS // num_numbers), most))


def queries_by_head(query: Captured, heads: Sequence[int]) -> ByHead:
    """[heads, Q, E] from captured rows [Q, heads of the layer, E]."""
    return _pick_heads(query, list(heads))


def keys_by_head(layer: Layer, key: Captured, heads: Sequence[int]) -> ByHead:
    """[heads, N, E], the keys that each query head reads, from captured rows [N, key heads, E]."""
    group = layer.num_heads // layer.num_key_heads
    return _pick_heads(key, [head // group for head in heads])


def part_of(by_head: ByHead, rows: slice) -> Any:
    """[heads, rows, E], contiguous, in float32, as a session takes it that is where these rows are."""
    return by_head.lay_out(rows) if isinstance(by_head, ResidentHeads) else np.ascontiguousarray(by_head[:, rows])


def _pick_heads(captured: Captured, heads: list[int]) -> ByHead:
    """[len(heads), N, E] of [N, H, E]: in one copy, or none of all heads that are laid out so."""
    if isinstance(captured, Resident):
        return ResidentHeads(resident=captured, heads=heads)
    by_head = captured.transpose(1, 0, 2)
    return np.ascontiguousarray(by_head if heads == list(range(len(by_head))) else by_head[heads], np.float32)
