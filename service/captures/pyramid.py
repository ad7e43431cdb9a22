"""The pyramid of a map: the map itself, and below it smaller and smaller ones, cut into tiles.

Zoom 0 is the whole map in one tile; each zoom above has twice as many rows and columns, up to one cell per weight.
Cells are maxima, so that a single bright weight can be seen from afar.
"""

from dataclasses import dataclass

from attnserve.service.pooling import find_factor

TILE = 256
"""Rows and columns of a tile; those at the right and lower edge are trimmed."""
THUMBNAIL = 64
"""Rows and columns that a thumbnail has at most."""


@dataclass(frozen=True)
class Pyramid:
    """Sizes of the pyramid over a map of `length` x `length`."""

    length: int

    @property
    def num_zooms(self) -> int:
        """Levels; the last is the map itself."""
        return find_factor(self.length, TILE).bit_length()

    def factor(self, zoom: int) -> int:
        """Rows, and columns, of the map that are one of a level."""
        return 1 << (self.num_zooms - 1 - zoom)

    def num_tiles(self, zoom: int) -> int:
        """Tiles of a level from above to below, and as many from left to right."""
        return -(-self.length // (TILE * self.factor(zoom)))

    def span(self, zoom: int, index: int) -> slice:
        """Rows of the map that the tiles of one row show, or its columns."""
        size = TILE * self.factor(zoom)
        return slice(index * size, min((index + 1) * size, self.length))
