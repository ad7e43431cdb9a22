"""Extents: the rows and keys that a block of weights covers, and what measures need to know of them.

It is the same for every layer that sees the same keys, and found once.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.weighing import WeightRows

Array = NDArray[Any]

# Where a pattern has fewer cells than one in so many, they are picked; else all are multiplied.
SPARSE = 16
MARKED = ("first", "previous", "own")
"""Keys that every row has in particular."""
# Cells of the extents of a sequence that are kept from one layer to the next: those of 1,400 causal steps, 12 MB if all
# is asked for. Those of longer ones are found again in each layer, for a tenth of the work.
MAX_KEPT_CELLS = 1 << 20


# Without a repr: ids are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class About:
    """What measures must know of a sequence besides its weights."""

    num_keys: int
    ids: NDArray[np.int64] | None = None
    """[N] token ids; None of features."""
    special: NDArray[np.bool_] | None = None
    """[N] steps that are special tokens; None if nobody asks."""
    chosen: NDArray[np.bool_] | None = None
    """[N] the keys asked for; None is all."""
    exclude_bos: bool = False
    exclude_current_token: bool = False
    extents: dict[tuple[int, bytes, bytes], "Extent"] = field(default_factory=dict)
    """Those that were found, by the first row and the keys that rows may see."""

    def find_extent(self, rows: WeightRows) -> "Extent":
        """The extent of a block of rows, which must be of the same queries each time."""
        place = (rows.rows.start, rows.first_key.tobytes(), rows.last_key.tobytes())
        found = self.extents.get(place)
        if found is None:
            # Not itself: extents that know who keeps them would stay, patterns and all, until Python looks for cycles,
            # which a service has it do seldom.
            found = Extent(
                about=dataclasses.replace(self, extents={}),
                steps=rows.steps,
                first_key=rows.first_key,
                last_key=rows.last_key,
                keys=np.arange(rows.columns.start, rows.columns.stop),
            )
            if sum(extent.num_cells for extent in self.extents.values()) + found.num_cells <= MAX_KEPT_CELLS:
                self.extents[place] = found
        return found


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Extent:
    """Q rows and C successive keys."""

    about: About
    steps: NDArray[np.int64]
    """[Q]"""
    first_key: NDArray[np.int64]
    last_key: NDArray[np.int64]
    keys: NDArray[np.int64]
    """[C]"""

    @property
    def num_cells(self) -> int:
        """Q x C"""
        return len(self.steps) * len(self.keys)

    @property
    def origin(self) -> int:
        """The first of the rows' steps: places are counted from here, for numbers that are small where weights are."""
        return int(self.steps.min())

    @cached_property
    def middle(self) -> slice:
        """Columns among the rows' steps, where some rows have keys before and others behind them."""
        start, last = np.searchsorted(self.keys, (self.steps.min(), self.steps.max()))
        return slice(int(start), int(last) + 1)

    @cached_property
    def distances(self) -> NDArray[np.float32]:
        """[Q, columns of `middle`] steps between row and key."""
        distances: NDArray[np.float32] = np.abs(self.steps[:, None] - self.keys[self.middle]).astype(np.float32)
        return distances

    @cached_property
    def features(self) -> tuple[list[str], NDArray[np.float32]]:
        """Names, and [C, features] of the keys: what weights are summed by."""
        side = np.ones(len(self.keys), np.float32)
        side[self.middle], side[self.middle.stop :] = 0, -1
        named: dict[str, Array] = {
            "one": np.ones_like(side),
            "side": side,
            "side x place": side * (self.keys - self.origin),
        }
        about = self.about
        if about.chosen is not None:
            named["chosen"] = about.chosen[self.keys]
        if about.special is not None:
            named["special"] = about.special[self.keys]
        return list(named), np.stack(list(named.values()), axis=1).astype(np.float32)

    @cached_property
    def marked_columns(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[Q, 3] columns of the keys in `MARKED`, and whether they are there; else the column is any."""
        keys = np.stack([np.zeros_like(self.steps), self.steps - 1, self.steps], axis=1)
        is_there = (keys >= self.keys[0]) & (keys <= self.keys[-1])
        return np.where(is_there, keys - self.keys[0], 0), is_there

    @cached_property
    def counted(self) -> NDArray[np.float32] | None:
        """[Q, C] cells that patterns are looked for in; None is all."""
        about = self.about
        if not about.exclude_bos and not about.exclude_current_token:
            return None
        counted = np.ones((len(self.steps), len(self.keys)), np.bool_)
        if about.exclude_bos:
            counted &= self.keys > 0
        if about.exclude_current_token:
            counted &= self.keys != self.steps[:, None]
        return counted.astype(np.float32)

    @cached_property
    def num_rows_of_key(self) -> NDArray[np.int64]:
        """[C] rows that may see each key."""
        change = np.zeros(len(self.keys) + 1, np.int64)
        np.add.at(change, self.first_key - self.keys[0], 1)
        np.add.at(change, self.last_key + 1 - self.keys[0], -1)
        return change.cumsum()[:-1]

    @cached_property
    def _patterns(self) -> dict[str, Any]:
        return {}

    def find_pattern(self, name: str) -> tuple[Array, Array] | NDArray[np.float32]:
        """Cells of "duplicate_token" or "induction": rows and columns of a few, or [Q, C] zeros and ones."""
        if name not in self._patterns:
            self._patterns[name] = self._make_pattern(name)
        found: tuple[Array, Array] | NDArray[np.float32] = self._patterns[name]
        return found

    def _make_pattern(self, name: str) -> tuple[Array, Array] | NDArray[np.float32]:
        ids = self.about.ids
        assert ids is not None
        own, keys = self.steps[:, None], self.keys
        if name == "duplicate_token":
            cells = (ids[keys] == ids[own]) & (keys < own)
        else:
            # Of key 0, the one before is the last of all: any will do, since there is none.
            cells = (ids[keys - 1] == ids[own]) & (keys <= own) & (keys > 0)
        if self.counted is not None:
            cells &= self.counted > 0
        if cells.sum() * SPARSE < cells.size:
            rows, columns = np.nonzero(cells)
            return rows, columns
        dense: NDArray[np.float32] = cells.astype(np.float32)
        return dense
