"""The pyramid covers every weight once at each zoom, whatever the length."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnserve.service.captures.pyramid import TILE, Pyramid


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(length=st.integers(1, 20_000))
def test_every_row_is_in_one_tile(length):
    pyramid = Pyramid(length)
    assert pyramid.factor(pyramid.num_zooms - 1) == 1
    assert pyramid.num_tiles(0) == 1
    for zoom in range(pyramid.num_zooms):
        factor = pyramid.factor(zoom)
        spans = [pyramid.span(zoom, index) for index in range(pyramid.num_tiles(zoom))]
        rows = [row for span in spans for row in (span.start, span.stop)]
        assert rows[0] == 0
        assert rows[-1] == length
        assert rows[1:-1:2] == rows[2::2]
        for span in spans:
            assert span.start % factor == 0
            assert 0 < span.stop - span.start <= TILE * factor
        assert zoom == 0 or 2 * factor == pyramid.factor(zoom - 1)


@pytest.mark.parametrize(
    ("length", "num_zooms"), [(1, 1), (256, 1), (257, 2), (512, 2), (513, 3), (4096, 5), (4097, 6)]
)
def test_levels(length, num_zooms):
    assert Pyramid(length).num_zooms == num_zooms
