"""What a notebook shows: maps as the service draws them, heads as a heat map, and nothing of what is no picture."""

import io

import numpy as np
import pytest
from PIL import Image

from attnserve.client import pictures
from attnserve.client.attention import read_attention
from tests.attnserve.client.conftest import make_headers

RANDOM = np.random.default_rng(0)
MEASURES = {
    "entropy_bits": RANDOM.random((2, 3), np.float32),
    "entropy_normalised": RANDOM.random((2, 3), np.float32),
    "sink": np.full((2, 3), np.nan, np.float32),
    "received": RANDOM.random((2, 3, 5), np.float32),
    "collapse": RANDOM.random(2, np.float32),
}
AXES = {
    **{name: ["layer", "head"] for name in MEASURES},
    "received": ["layer", "head", "key"],
    "collapse": ["layer"],
}


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, as it is handed on."""
    calls = []
    from attnserve.service.formats import picture

    draw = picture.draw_panels

    def draw_panels(panels, **options):
        calls.append((panels, options))
        return draw(panels, **options)

    monkeypatch.setattr(picture, "draw_panels", draw_panels)
    return calls


def open_picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_maps_have_a_panel_per_head(make_tensors, drawn):
    weights = RANDOM.random((2, 3, 4, 5), np.float32)
    attention = read_attention(make_tensors({"weights": weights}), make_headers())
    picture = attention._repr_png_()
    assert open_picture(picture).format == "PNG"
    assert attention.picture() == picture
    panels, options = drawn[0]
    assert [panel.title for panel in panels] == ["1.0", "1.1", "1.2", "0.0", "0.1", "0.2"]
    np.testing.assert_array_equal(panels[4].values, weights[1, 1])
    assert options["num_columns"] == 3
    assert options["caption"] == "m version 2: weights by layer.head"


def test_maps_that_are_put_together(make_tensors, drawn):
    rollout = RANDOM.random((4, 5), np.float32)
    tensors = make_tensors({"rollout": rollout}, quantity="rollout", axes={"rollout": ["query", "key"]})
    assert read_attention(tensors, make_headers()).picture() is not None
    ((panel,), _) = drawn[0]
    np.testing.assert_array_equal(panel.values, rollout)


def test_diagnostics_are_a_heat_map_of_the_heads(make_tensors, drawn):
    tensors = make_tensors(MEASURES, quantity="diagnostics", axes=AXES)
    assert open_picture(read_attention(tensors, make_headers()).picture()).format == "PNG"
    panels, options = drawn[0]
    assert [panel.title for panel in panels] == ["entropy_normalised", "sink"]
    np.testing.assert_array_equal(panels[0].values, MEASURES["entropy_normalised"])
    assert options["axes"] == ("layers", "heads")


def test_a_measure_of_its_own_scale_stands_alone(make_tensors, drawn):
    tensors = make_tensors(
        {"distance": MEASURES["entropy_bits"]}, quantity="diagnostics", axes={"distance": ["layer", "head"]}
    )
    assert read_attention(tensors, make_headers()).picture() is not None
    assert [panel.title for panel in drawn[0][0]] == ["distance"]


@pytest.mark.parametrize(
    ("arrays", "fields"),
    [
        ({"collapse": MEASURES["collapse"]}, {"quantity": "diagnostics", "axes": {"collapse": ["layer"]}}),
        ({"layers.0.query": RANDOM.random((3, 2, 4))}, {"quantity": "qk", "axes": {}}),
        ({"weights": np.zeros((2, 3, 2, 4))}, {"axes": {"weights": ["layer", "head", "query", "entry"]}}),
        ({"weights": np.zeros((20, 30, 1, 1))}, make_headers()),
        ({"weights": np.zeros((0, 3, 2, 2))}, make_headers()),
    ],
    ids=["of layers", "queries and keys", "cut down", "too many", "none"],
)
def test_what_is_no_picture(make_tensors, arrays, fields):
    assert read_attention(make_tensors(arrays, **fields), make_headers())._repr_png_() is None


def test_measures_of_one_scale_are_parts_of_1():
    from attnserve.service.diagnostics import DIAGNOSTICS

    of_heads = {name for one in DIAGNOSTICS.values() if one.axis == "" for name in one.measures}
    assert set(pictures.PARTS) == of_heads - {"entropy_bits", "distance"}
