"""Weights in other types: what they are read as, and the error that is told of them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from attnserve.service.formats import coding as module
from attnserve.service.formats.coding import CODINGS, DTYPES, code, widen

NUMBERS = st.floats(0, 1, width=32, allow_subnormal=False)
WEIGHTS = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=9), elements=NUMBERS)


def decode(coded):
    """As docs/formats.md says."""
    if coded.scale is None:
        return coded.values.astype(np.float32)
    return (coded.values.astype(np.float32) / 255) ** 2 * coded.scale[..., None]


def loss(array, coded):
    return np.abs(decode(coded) - array).sum(-1, dtype=np.float64).max() / 2


def normalised(array):
    return (array / np.maximum(array.sum(-1, keepdims=True), 1e-30)).astype(np.float32)


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(array=WEIGHTS, coding=st.sampled_from(CODINGS))
def test_shape_type_and_error(array, coding):
    rows = normalised(array)
    coded = code(rows, coding)
    assert (coded.values.shape, coded.values.dtype) == (rows.shape, DTYPES[coding])
    assert (coded.scale is None) == (coding != "uint8_sqrt")
    assert coded.row_error == pytest.approx(loss(rows, coded), rel=1e-3, abs=1e-7)
    # Whatever is masked stays exactly 0.
    assert (coded.values[rows == 0] == 0).all()


def test_float16_is_numpys():
    rows = normalised(np.random.default_rng(0).random((3, 2, 50)) ** 8)
    np.testing.assert_array_equal(code(rows, "float16").values, rows.astype(np.float16))


def test_square_roots_keep_the_tail_that_linear_steps_lose():
    # One large weight, and half of the mass in many small ones.
    row = np.full(1000, 0.5 / 999, np.float32)
    row[0] = 0.5
    coded = code(row[None], "uint8_sqrt")
    assert coded.scale.tolist() == [0.5]
    assert coded.values[0, 0] == 255
    assert coded.row_error < 0.03
    linear = np.rint(row * 255 / row.max()) * row.max() / 255
    assert np.abs(linear - row).sum() / 2 > 0.2


@pytest.mark.parametrize("coding", CODINGS)
def test_rows_of_zeros_and_no_rows(coding):
    zeros = code(np.zeros((2, 5), np.float32), coding)
    assert not zeros.values.any()
    assert zeros.row_error == 0
    for shape in ((0, 5), (2, 0, 5), (3, 0)):
        nothing = code(np.empty(shape, np.float32), coding)
        assert nothing.values.shape == shape
        assert nothing.row_error == 0


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("max_numbers", [1, 7, 20])
def test_blocks_of_rows_add_up(monkeypatch, coding, max_numbers):
    rows = normalised(np.random.default_rng(1).random((2, 5, 7)))
    whole = code(rows, coding)
    monkeypatch.setattr(module, "MAX_BLOCK_NUMBERS", max_numbers)
    parts = code(rows, coding)
    np.testing.assert_array_equal(parts.values, whole.values)
    assert parts.row_error == whole.row_error
    if whole.scale is not None:
        np.testing.assert_array_equal(parts.scale, whole.scale)


def test_what_float16_cannot_hold_is_told():
    assert code(np.array([[1.0, 1e6]], np.float32), "float16").row_error == np.inf
    assert code(np.array([[np.inf, 1.0]], np.float32), "float16").row_error == np.inf


def test_float32_is_not_copied():
    array = np.ones((2, 3), np.float32)
    assert code(array, "float32").values is array


def test_not_contiguous():
    rows = normalised(np.random.default_rng(2).random((4, 6)))
    np.testing.assert_array_equal(code(rows[::2, ::3], "float16").values, rows[::2, ::3].astype(np.float16))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (7,), (0, 4), (2, 0)])
def test_half_is_widened_as_numpy_does(shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    for half in (array, array[::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(widen(half), half.astype(np.float32), strict=True)
    extremes = np.array([[0.0, -0.0, 6e-8, 65504, -65504, np.inf]], np.float16)
    np.testing.assert_array_equal(widen(extremes), extremes.astype(np.float32), strict=True)


def test_what_is_wide_is_not_copied():
    array = np.ones((2, 3), np.float32)
    assert widen(array) is array
