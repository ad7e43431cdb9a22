"""Tensors of the Open Inference Protocol: what was written is what is read, as JSON and as bytes."""

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from attnserve.service.oip.tensors import Spec, read_tensor, render_tensor

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def read_back(array, datatype, *, is_binary, nested=False):
    spec = Spec(name="x", datatype=datatype, shape=(-1,) * array.ndim)
    tensor = {"name": "x", "datatype": datatype, "shape": list(array.shape)}
    if is_binary:
        return read_tensor(tensor, memoryview(array.tobytes()), spec, "x.")
    data = array.tolist() if nested else array.reshape(-1).tolist()
    return read_tensor(orjson.loads(orjson.dumps({**tensor, "data": data})), None, spec, "x.")


@given(
    arrays.arrays("<f4", arrays.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=FLOATS)
    | arrays.arrays("<i8", arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None)
def test_what_is_sent_is_read(array, is_binary, nested):
    datatype = "INT64" if array.dtype.kind == "i" else "FP32"
    found = read_back(array, datatype, is_binary=is_binary, nested=nested)
    np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2"])
def test_outputs_are_float32_row_by_row(dtype, transposed):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    array = array.T if transposed else array
    expected = array.astype("<f4")
    entry, raw = render_tensor("x", array, is_binary=True)
    shape = list(array.shape)
    parameters = {"binary_data_size": 96}
    assert entry == {"name": "x", "datatype": "FP32", "shape": shape, "parameters": parameters}
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(shape), expected)
    entry, raw = render_tensor("x", array, is_binary=False)
    assert raw == b""
    read = orjson.loads(orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY))
    # The shortest text that is this float32 and no other.
    np.testing.assert_array_equal(np.array(read["data"], "<f4").reshape(shape), expected)
    assert "parameters" not in read


def test_bytes_are_not_copied():
    raw = np.arange(4).tobytes()
    spec = Spec(name="x", datatype="INT64", shape=(-1, -1))
    tensor = {"name": "x", "datatype": "INT64", "shape": [2, 2]}
    found = read_tensor(tensor, memoryview(raw), spec, "x.")
    assert np.shares_memory(found, np.frombuffer(raw, np.uint8))
