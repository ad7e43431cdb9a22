"""Tensors are read as a service writes them, and nothing else is."""

import json

import numpy as np
import pytest

from attnserve.client.tensors import TYPES, read_tensors
from attnserve.service.formats.coding import CODINGS, code
from attnserve.service.formats.tensors import SAFETENSORS_TYPES
from tests.attnserve.client.conftest import write

ARRAYS = {
    "sequences.0.weights": np.random.default_rng(0).random((2, 3, 4), np.float32),
    "sequences.0.indices": np.arange(6, dtype=np.int32).reshape(2, 3),
    "sequences.1.weights": np.zeros((0, 3), np.float16),
}


def test_what_was_written_is_read():
    tensors = read_tensors(write({"model": "é", "version": 1}, ARRAYS))
    assert tensors.document == {"model": "é", "version": 1}
    assert tensors.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors.arrays[name], array)
        # It is the one who reads that owns it.
        tensors.arrays[name][...] = 0


def test_every_type_of_a_service_can_be_read():
    assert set(SAFETENSORS_TYPES.values()) == TYPES.keys()


@pytest.mark.parametrize("coding", CODINGS)
def test_weights_are_weights_whatever_their_type(coding):
    weights = np.random.default_rng(0).dirichlet(np.ones(50), (2, 3)).astype(np.float32)
    coded = code(weights, coding)
    arrays = {"sequences.0.weights": coded.values, "sequences.0.scale": np.ones(2, np.float32)}
    if coded.scale is not None:
        arrays["sequences.0.weights.scale"] = coded.scale
    found = read_tensors(write({}, arrays)).arrays
    # One that is only called like it stays.
    assert found.keys() == {"sequences.0.weights", "sequences.0.scale"}
    lost = np.abs(found["sequences.0.weights"].astype(float) - weights).sum(-1).max() / 2
    assert lost == pytest.approx(coded.row_error, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<html>",
        b"\xff" * 100,
        json.dumps({"fine": True}).encode(),
        write({}, ARRAYS)[:-4],
        write({}, {})[:12],
    ],
)
def test_something_else_is_refused(body):
    with pytest.raises(ValueError, match=f"expected safetensors with an answer, got {len(body)} bytes of others"):
        read_tensors(body)
