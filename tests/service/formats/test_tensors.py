"""Tensors written are the tensors read, by libraries that are not ours."""

import io
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load
from tritonclient.http import InferResult

from attnserve.service.formats.negotiation import BINARY, NPZ, SAFETENSORS, TENSORS
from attnserve.service.formats.tensors import DATATYPES, HEADER, SAFETENSORS_TYPES, write_tensors

DOCUMENT = {"model": "tiny", "version": 3, "tokens": ["naïve", "\u2028", '"'], "queries": np.arange(3)}
TEXT = {**DOCUMENT, "queries": [0, 1, 2]}
ARRAYS = {
    "bytes": np.arange(5, dtype=np.uint8),
    "wide": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.linspace(0, 1, 7, dtype=np.float16).reshape(7, 1),
    "none": np.empty((0, 3), np.float32),
    "ids": np.arange(-2, 2),
    "places": np.arange(3, dtype=np.int32),
    # Neither contiguous nor little-endian.
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "big": np.arange(3, dtype=">f4"),
}


def body_of(document, arrays, media_type):
    written = write_tensors(document, arrays, media_type)
    return b"".join(written.parts), written.headers


def read(body, headers, media_type):
    """Arrays by name, and the JSON part."""
    if media_type == SAFETENSORS:
        size = int.from_bytes(body[:8], "little")
        return load(body), json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["answer"])
    if media_type == NPZ:
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            arrays = dict(file)
        return arrays, json.loads(arrays.pop("answer").tobytes())
    result = InferResult.from_response_body(body, header_length=int(headers[HEADER]))
    response = dict(result.get_response())
    arrays = {output["name"]: result.as_numpy(output["name"]) for output in response.pop("outputs")}
    assert (response.pop("model_name"), response.pop("model_version")) == ("tiny", "3")
    return arrays, response


@pytest.mark.parametrize("media_type", TENSORS)
def test_what_is_written_is_read(media_type):
    body, headers = body_of(DOCUMENT, ARRAYS, media_type)
    arrays, document = read(body, headers, media_type)
    assert document == TEXT
    assert arrays.keys() == ARRAYS.keys()
    if media_type == BINARY:
        # Their client makes all that is empty float64.
        assert arrays.pop("none").shape == (0, 3)
    for name, found in arrays.items():
        assert found.dtype.newbyteorder("=") == ARRAYS[name].dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, ARRAYS[name])


@pytest.mark.parametrize("media_type", TENSORS)
def test_an_answer_without_arrays(media_type):
    arrays, document = read(*body_of(DOCUMENT, {}, media_type), media_type)
    assert (arrays, document) == ({}, TEXT)


def test_safetensors_are_aligned_and_can_be_mapped(tmp_path):
    body, _ = body_of(DOCUMENT, ARRAYS, SAFETENSORS)
    size = int.from_bytes(body[:8], "little")
    assert size % 8 == 0
    header = json.loads(body[8 : 8 + size])
    for name, array in ARRAYS.items():
        assert header[name]["data_offsets"][0] % array.itemsize == 0
    (tmp_path / "answer.safetensors").write_bytes(body)
    with safe_open(tmp_path / "answer.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("wide"), ARRAYS["wide"])


def test_bodies_share_the_memory_of_their_arrays():
    array = np.zeros(1000, np.float32)
    for media_type in (SAFETENSORS, BINARY):
        (*_, part) = write_tensors(DOCUMENT, {"a": array}, media_type).parts
        assert np.shares_memory(np.frombuffer(part, np.uint8), array)


def test_both_tables_know_the_same_types():
    assert DATATYPES.keys() == SAFETENSORS_TYPES.keys()
