"""`Head`: the map of one head, recomputed piece by piece from its queries and keys, and what is remembered of it."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer
from attnserve.rows import visible_keys
from attnserve.service.captures.pyramid import THUMBNAIL, Pyramid
from attnserve.service.formats.coding import widen
from attnserve.service.pooling import find_factor, pool_columns, pool_maxima, pool_rows
from attnserve.weighing import Weighing

# Rows computed at once: with as many keys, what fits a core's cache.
BLOCK_ROWS = 256
# A tile whose cells are no more than so many weights wide is computed in about the time it takes to send it. Coarser
# ones are cut out of levels that are computed once, of at most so many rows.
MAX_DIRECT_FACTOR = 2
MAX_REMEMBERED = 1024
OBJECT_BYTES = 1024


class Head:
    """One head of a capture. Its methods may be called from several threads; what is computed once, one computes.

    Args:
        weighing: of the bundle that was captured.
        layer: how the head attends.
        query: [N, E]
        key: [N, E], of the key head that it reads.
    """

    def __init__(
        self, weighing: Weighing, layer: Layer, query: NDArray[np.floating[Any]], key: NDArray[np.floating[Any]]
    ) -> None:
        self.layer = layer
        self.query, self.key = query, key
        self.pyramid = Pyramid(len(query))
        self._weighing = weighing
        self._computing = threading.Lock()
        self._normaliser: NDArray[np.float32] | None = None
        # Of the pyramid, by how many rows of the map one of theirs is.
        self._levels: dict[int, NDArray[np.float32]] = {}
        # Numbers, not properties: they are added up whenever anything is remembered of any head of a capture.
        self.kept_bytes = OBJECT_BYTES
        """Memory it takes for as long as its capture is there, beside its queries and keys."""
        self.remembered_bytes = 0
        """And what `forget` gives back."""

    def forget(self) -> None:
        """Remember nothing but the normaliser, without which every tile takes as long as the first."""
        # Without waiting for who is computing: the event loop calls it.
        self._levels = {}
        self.remembered_bytes = 0

    def normaliser(self) -> NDArray[np.float32]:
        """[N], of every row."""
        with self._computing:
            if self._normaliser is None:
                self._normaliser = self._normalise()
                self.kept_bytes += self._normaliser.nbytes
            return self._normaliser

    def rows(self, steps: NDArray[np.int64]) -> NDArray[np.float32]:
        """[Q, N] weights of the rows at `steps`."""
        query, key = widen(self.query[steps]), widen(self.key)
        weights: NDArray[np.float32] = self._weighing.weigh_all(
            self.layer, query[:, None], key[:, None], steps=steps, heads=[0]
        )[0]
        return weights

    def tile(self, zoom: int, y: int, x: int) -> NDArray[np.float32]:
        """[<= 256, <= 256] maxima; 0 where no key may be seen.

        Args:
            zoom: below `pyramid.num_zooms`.
            y: which tile from above, below `pyramid.num_tiles(zoom)`.
            x: which from the left.
        """
        factor, coarse = self.pyramid.factor(zoom), self._coarse_factor
        rows, columns = self.pyramid.span(zoom, y), self.pyramid.span(zoom, x)
        if factor < coarse:
            return self._pool_part(rows, columns, factor)
        with self._computing:
            self._find_level(coarse)
            return self._find_level(factor)[_divide(rows, factor), _divide(columns, factor)]

    def thumbnail(self) -> NDArray[np.float32]:
        """[<= 64, <= 64] maxima of the whole map."""
        with self._computing:
            return self._find_level(find_factor(self.pyramid.length, THUMBNAIL))

    @property
    def _coarse_factor(self) -> int:
        """Of the finest level that is remembered."""
        return max(2 * MAX_DIRECT_FACTOR, find_factor(self.pyramid.length, MAX_REMEMBERED))

    def _find_level(self, factor: int) -> NDArray[np.float32]:
        """A whole level, of a finer one if there is one."""
        # Those there are now: they may be forgotten meanwhile.
        levels = self._levels
        level = levels.get(factor)
        if level is None:
            finer = max((known for known in levels if known < factor), default=None)
            level = self._pool_all(factor) if finer is None else pool_maxima(levels[finer], factor // finer)
            levels[factor] = level
            # Of those there are by now: they may have been forgotten.
            self.remembered_bytes = sum(known.nbytes for known in self._levels.values())
        return level

    def _normalise(self) -> NDArray[np.float32]:
        length, key = self.pyramid.length, widen(self.key)
        normaliser = np.empty(length, np.float32)
        for start in range(0, length, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, length))
            first, last = visible_keys(self.layer, np.arange(rows.start, rows.stop), length)
            begin, end = int(first.min()), int(last.max()) + 1
            normaliser[rows] = self._weighing.normalise(
                self.layer, widen(self.query[rows])[None], key[None, begin:end], first=first - begin, last=last - begin
            )[0]
        return normaliser

    def _pool_part(self, rows: slice, columns: slice, factor: int) -> NDArray[np.float32]:
        """Maxima of a part of the map that begins at a multiple of `factor`, by the normaliser."""
        normaliser = self.normaliser()
        pooled = np.zeros(
            (-(-(rows.stop - rows.start) // factor), -(-(columns.stop - columns.start) // factor)), np.float32
        )
        for start in range(rows.start, rows.stop, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows.stop))
            first, last = visible_keys(self.layer, np.arange(block.start, block.stop), self.pyramid.length)
            begin, end = max(columns.start, int(first.min())), min(columns.stop, int(last.max()) + 1)
            if begin >= end:
                continue
            # Down to where a cell begins.
            begin -= (begin - columns.start) % factor
            weights = self._weighing.weigh_part(
                self.layer,
                widen(self.query[block])[None],
                widen(self.key[begin:end])[None],
                normaliser[None, block],
                first=first - begin,
                last=last - begin,
            )[0]
            place = slice(block.start - rows.start, block.stop - rows.start)
            cells = slice(begin - columns.start, end - columns.start)
            pooled[_divide(place, factor), _divide(cells, factor)] = pool_maxima(weights, factor)
        return pooled

    def _pool_all(self, factor: int) -> NDArray[np.float32]:
        """Maxima of the whole map, without the normaliser."""
        length = self.pyramid.length
        by_row = np.zeros((length, -(-length // factor)), np.float32)
        query, key = widen(self.query), widen(self.key)
        blocks = self._weighing.weigh(self.layer, query[:, None], key[:, None], steps=np.arange(length), heads=[0])
        for block in blocks:
            # The first cell may begin before the block does. No weight is smaller than these zeros.
            before = block.columns.start % factor
            weights = np.pad(block.weights[0], ((0, 0), (before, 0))) if before else block.weights[0]
            by_row[block.rows, _divide(block.columns, factor)] = pool_columns(weights, factor)
        return pool_rows(by_row, factor)


def _divide(part: slice, factor: int) -> slice:
    """The cells that hold a part, if one cell is `factor` long."""
    return slice(part.start // factor, -(-part.stop // factor))
