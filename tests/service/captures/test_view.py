"""Views of a capture, in every format."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from attnserve.service.captures.view import (
    Size,
    thumbnail_size,
    view_qk,
    view_rows,
    view_thumbnails,
    view_tile,
    write_view,
)
from attnserve.service.formats.negotiation import IDENTITY, JSON, PNG, SAFETENSORS
from attnserve.service.problems import TooLarge
from attnserve.service.selection import MAX_ENTRIES
from tests.captures import make_capture


@pytest.fixture
def capture():
    return make_capture(length=300)


VIEWS = {
    "weights": lambda capture: view_rows(capture, 1, 0, np.array([299, 3])),
    "tile": lambda capture: view_tile(capture, 1, 0, 1, 1, 0),
    "thumbnails": lambda capture: view_thumbnails(capture, [1, 0], [0, 1, 1]),
    "query": lambda capture: view_qk(capture, 1, 1),
}
SHAPES = {"weights": (2, 300), "tile": (44, 256), "thumbnails": (2, 3, 38, 38), "query": (300, 4)}


def write(capture, view, media_type, coding="float32"):
    return write_view(capture, view, coding, media_type, IDENTITY, {"ETag": "x"})


@pytest.mark.parametrize("name", VIEWS)
def test_json_and_tensors_say_the_same(capture, name):
    view = VIEWS[name](capture)
    document = json.loads(write(capture, view, JSON).body)
    response = write(capture, view, SAFETENSORS)
    tensors = load(response.body)
    assert tensors.keys() == view.arrays.keys()
    assert tensors[name].shape == SHAPES[name]
    for each, array in tensors.items():
        np.testing.assert_array_equal(np.array(document.pop(each), np.float32), array)
    size = int.from_bytes(response.body[:8], "little")
    answer = json.loads(json.loads(response.body[8 : 8 + size])["__metadata__"]["answer"])
    assert answer == document
    assert document["capture"] == str(capture.id)
    assert response.headers["Attention-Shape"] == ",".join(map(str, SHAPES[name]))
    assert len(response.headers["Attention-Axes"].split(",")) == len(SHAPES[name])
    assert response.headers["ETag"] == "x"


def test_places_are_absolute(capture):
    document = view_tile(capture, 1, 0, 1, 1, 0).document
    assert {name: document[name] for name in ("zoom", "y", "x", "factor", "queries", "keys")} == {
        "zoom": 1,
        "y": 1,
        "x": 0,
        "factor": 1,
        "queries": [256, 300],
        "keys": [0, 256],
    }
    assert view_tile(capture, 1, 0, 0, 0, 0).document["keys"] == [0, 300]
    assert view_thumbnails(capture, [0], [0]).document["factor"] == 8


def test_qk_makes_the_map(capture):
    document = json.loads(write(capture, VIEWS["query"](capture), JSON).body)
    query, key, normaliser = (np.array(document[name]) for name in ("query", "key", "normaliser"))
    scores = document["scale"] * query @ key.T
    assert document["weighting"] == "expressive"
    weights = np.tril(scores**2 / (1 + scores**2)) / (normaliser[:, None] + document["epsilon"])
    # A row that the layer's window does not cut.
    assert document["window"] == 7
    np.testing.assert_allclose(weights[[6]], capture.head(1, 1).rows(np.array([6])), atol=1e-5)
    np.testing.assert_allclose(document["value_norm"], capture.layers[1].value_norm[1], rtol=1e-6)


@pytest.mark.parametrize("coding", ["float16", "uint8_sqrt"])
def test_codings(capture, coding):
    view = VIEWS["thumbnails"](capture)
    response = write(capture, view, SAFETENSORS, coding)
    tensors = load(response.body)
    values = tensors["thumbnails"].astype(np.float32)
    if coding == "uint8_sqrt":
        values = (values / 255) ** 2 * tensors["thumbnails.scale"][..., None]
    error = np.abs(values - view.arrays["thumbnails"]).sum(-1).max() / 2
    assert float(response.headers["Attention-Max-Row-Error"]) == pytest.approx(error, rel=0.01)


def test_queries_and_keys_have_no_rows_to_lose(capture):
    response = write(capture, VIEWS["query"](capture), SAFETENSORS, "float16")
    tensors = load(response.body)
    assert {name: array.dtype.name for name, array in tensors.items()} == {
        "query": "float16",
        "key": "float16",
        "normaliser": "float32",
        "value_norm": "float32",
    }
    assert response.headers["Attention-Dtype"] == "float16"
    assert "Attention-Max-Row-Error" not in response.headers


@pytest.mark.parametrize(
    ("name", "least"), [("tile", (256, 44)), ("weights", (256, 16)), ("thumbnails", (3 * 38, 2 * 38))]
)
def test_pictures(capture, name, least):
    response = write(capture, VIEWS[name](capture), PNG)
    with Image.open(io.BytesIO(response.body)) as image:
        assert image.size >= least
        # Tiles are laid side by side, so there is nothing but the tile.
        assert name != "tile" or image.size == least


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 4096])
def test_thumbnails_have_the_size_that_was_told(length):
    size = thumbnail_size(length)
    assert 1 <= size <= 64
    if length <= 300:
        assert make_capture(length=length).head(0, 0).thumbnail().shape == (size, size)


def test_sizes():
    size = Size(field="queries", num_values=MAX_ENTRIES, media_type=JSON, coding="float32")
    size.check(10**9)
    assert size.held_bytes == 12 * MAX_ENTRIES
    with pytest.raises(TooLarge, match=r"queries: a JSON answer may hold at most 65536 numbers, this one needs 65537"):
        Size(field="queries", num_values=MAX_ENTRIES + 1, media_type=JSON, coding="float32").check(10**9)
    for coding, num_bytes in (("float32", 4000), ("float16", 2000), ("uint8_sqrt", 1000)):
        size = Size(field="layers", num_values=1000, media_type=SAFETENSORS, coding=coding)
        size.check(num_bytes)
        with pytest.raises(TooLarge, match=f"at most {num_bytes - 1} bytes, this one needs {num_bytes}"):
            size.check(num_bytes - 1)
