"""Measures: what a diagnostic adds up over rows of attention weights.

Each function returns the sum over the rows of a block, per head or per head and key, and how many rows it is of.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.resident import Captured, sum_units
from attnserve.service.extents import MARKED, Extent
from attnserve.weighing import WeightRows

Array = NDArray[Any]

TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Part:
    """A measure's sum over the rows of a block; the measure is the sum of sums over the sum of counts."""

    total: Array
    """[H], or [H, C] for one of every key."""
    count: Any
    """A number for all heads, [H], or [C]."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Block:
    """Weights of some rows, and what is known of the cells they are in."""

    rows: WeightRows
    extent: Extent

    @cached_property
    def sums(self) -> dict[str, Array]:
        """[H, Q] each: weights times every feature of the keys, in one product."""
        names, features = self.extent.features
        products = np.matmul(self.rows.weights, features)
        return {name: products[:, :, place] for place, name in enumerate(names)}

    @cached_property
    def marked(self) -> dict[str, Array]:
        """[H, Q] each: weights of the keys that every row has in particular; 0 where one is out of sight, or none."""
        columns, is_there = self.extent.marked_columns
        picked = self.rows.weights[:, np.arange(len(columns))[:, None], columns] * is_there
        return {name: picked[:, :, place] for place, name in enumerate(MARKED)}


def entropy(block: Block) -> dict[str, Part]:
    """In bits, and divided by the entropy of equal weights on all that the row may see."""
    rows = block.rows
    # A weight of 0 adds 0 times a finite number. Not `where=`, which is ten times slower.
    logs = np.log2(np.maximum(rows.weights, TINY))
    bits = -np.einsum("hqk,hqk->hq", rows.weights, logs)
    num_seen = rows.last_key - rows.first_key + 1
    several = num_seen > 1
    normalised = bits[:, several] / np.log2(num_seen[several])
    return {"entropy_bits": sum_rows(bits), "entropy_normalised": sum_rows(normalised)}


def distance(block: Block) -> dict[str, Part]:
    """Steps between the row's own and the keys."""
    extent, sums = block.extent, block.sums
    # |i - j| is linear in j on both sides of the rows; among them it is not.
    outside = (extent.steps - extent.origin) * sums["side"] - sums["side x place"]
    near = np.einsum("hqk,qk->hq", block.rows.weights[:, :, extent.middle], extent.distances)
    return {"distance": sum_rows(outside + near)}


def sink(block: Block) -> dict[str, Part]:
    """Weight of the first key."""
    return {"sink": sum_rows(block.marked["first"])}


def previous_token(block: Block) -> dict[str, Part]:
    """Weight of the key before the row's own, over rows that have one."""
    return {"previous_token": sum_rows(block.marked["previous"][:, block.extent.steps > 0])}


def self_weight(block: Block) -> dict[str, Part]:
    """Weight of the row's own key."""
    return {"self": sum_rows(block.marked["own"])}


def mass(block: Block) -> dict[str, Part]:
    """Weight of the keys asked for."""
    return {"mass": sum_rows(block.sums.get("chosen", block.sums["one"]))}


def special(block: Block) -> dict[str, Part]:
    """Weight of special tokens."""
    return {"special": sum_rows(block.sums["special"])}


def negative(block: Block) -> dict[str, Part]:
    """Weight of keys whose score is below 0."""
    assert block.rows.scores is not None
    opposed = np.einsum("hqk,hqk->hq", block.rows.weights, (block.rows.scores < 0).astype(np.float32))
    return {"negative": sum_rows(opposed)}


def duplicate_token(block: Block) -> dict[str, Part]:
    """Share of the weight that is on earlier keys of the same token."""
    return {"duplicate_token": _match(block, "duplicate_token")}


def induction(block: Block) -> dict[str, Part]:
    """Share of the weight that is on keys right after an earlier one of the same token."""
    return {"induction": _match(block, "induction")}


def received(block: Block) -> dict[str, Part]:
    """Weight of each key, over the rows that may see it."""
    weights = block.rows.weights
    # Half the time of `sum`.
    total = np.matmul(np.ones((1, weights.shape[1]), np.float32), weights)[:, 0]
    return {"received": Part(total=total, count=block.extent.num_rows_of_key)}


def mean_cosine(hidden: Captured) -> float:
    """Mean cosine similarity of all pairs of rows [n, D]; NaN of fewer than two. Rows of zeros are left out.

    With u the rows at length 1, it is (|sum u|^2 - n) / (n (n - 1)): no n x n products.
    """
    if len(hidden) < 2:
        return float("nan")
    units = sum_units(hidden)
    if units.num_rows < 2:
        return float("nan")
    return float((units.total @ units.total - units.num_rows) / (units.num_rows * (units.num_rows - 1)))


def _match(block: Block, name: str) -> Part:
    """Weight on a pattern, and all weight: TransformerLens's error measure "mul"."""
    weights, extent = block.rows.weights, block.extent
    counted, pattern = extent.counted, extent.find_pattern(name)
    # What does not count is left out of the sum, not subtracted from it: rounding would leave something of a row that
    # has nothing else.
    total = block.sums["one"] if counted is None else np.einsum("hqk,qk->hq", weights, counted)
    if isinstance(pattern, tuple):
        matched = weights[:, pattern[0], pattern[1]].sum(1, dtype=np.float64)
    else:
        matched = np.einsum("hqk,qk->hq", weights, pattern).sum(1, dtype=np.float64)
    return Part(total=matched, count=total.sum(1, dtype=np.float64))


def sum_rows(values: Array) -> Part:
    """[H] of [H, rows]."""
    return Part(total=values.sum(1, dtype=np.float64), count=values.shape[1])
