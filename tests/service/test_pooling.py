"""Pooled maps hold the largest number of each square, whatever the size."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from attnserve.service.pooling import find_factor, pool_columns, pool_maxima, pool_rows


def slowly(array, row_factor, column_factor):
    num_rows, num_columns = -(-array.shape[-2] // row_factor), -(-array.shape[-1] // column_factor)
    pooled = np.empty((*array.shape[:-2], num_rows, num_columns), array.dtype)
    for row in range(num_rows):
        for column in range(num_columns):
            rows = slice(row * row_factor, (row + 1) * row_factor)
            columns = slice(column * column_factor, (column + 1) * column_factor)
            pooled[..., row, column] = array[..., rows, columns].max((-2, -1))
    return pooled


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    array=arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=37), elements=st.floats(-2, 2, width=32)),
    factor=st.sampled_from([1, 2, 4, 8, 16, 64]),
)
def test_maxima(array, factor):
    np.testing.assert_array_equal(pool_maxima(array, factor), slowly(array, factor, factor))
    np.testing.assert_array_equal(pool_rows(array, factor), slowly(array, factor, 1))
    np.testing.assert_array_equal(pool_columns(array, factor), slowly(array, 1, factor))


def test_the_original_stays_as_it_was():
    array = np.arange(12.0).reshape(3, 4)
    pool_maxima(array, 4)
    np.testing.assert_array_equal(array, np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    ("num_cells", "max_cells", "expected"),
    [(1, 64, 1), (64, 64, 1), (65, 64, 2), (128, 64, 2), (129, 64, 4), (4096, 64, 64), (4097, 64, 128), (5, 1, 8)],
)
def test_factors(num_cells, max_cells, expected):
    factor = find_factor(num_cells, max_cells)
    assert factor == expected
    assert -(-num_cells // factor) <= max_cells
    assert factor == 1 or -(-num_cells // (factor // 2)) > max_cells
