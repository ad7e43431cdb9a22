"""Headers about maps."""

import pytest

from attnserve.service.formats.headers import (
    MAX_CHARACTERS,
    describe_array,
    describe_coding,
    describe_layers,
    describe_selection,
)
from tests.service.conftest import make_layer


def test_layers_are_told_once_each():
    expressive = make_layer(1, variant="expressive", weighting="expressive")
    layers = [make_layer(0), expressive, make_layer(2, variant="elliptical")]
    assert describe_layers(layers, causal=True) == {
        "Attention-Kind": "dot_product,expressive,elliptical",
        "Attention-Normalization": "softmax,expressive",
        "Attention-Causal": "?1",
    }
    assert describe_layers(layers[:1], causal=False)["Attention-Causal"] == "?0"


def test_array():
    assert describe_array((2, 1, 512), ("head", "query", "key")) == {
        "Attention-Shape": "2,1,512",
        "Attention-Axes": "head,query,key",
    }


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([3], "3"),
        ([0, 1, 2], "0:3"),
        ([0, 1, 2, 5, 7, 8], "0:3,5,7:9"),
        ([2, 1, 0], "2,1,0"),
        ([1, 1, 1], "1,1,1"),
        (range(65_536), "0:65536"),
    ],
)
def test_indices_are_those_a_client_would_write(indices, expected):
    assert describe_selection(layers=indices) == {"Attention-Layers": expected}


def test_what_takes_too_long_is_left_out():
    headers = describe_selection(layers=[0], queries=range(0, 10_000, 2))
    assert headers == {"Attention-Layers": "0"}
    assert all(len(text) <= MAX_CHARACTERS for text in describe_selection(heads=range(0, 100, 2)).values())


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        ("float32", {"Attention-Dtype": "float32"}),
        ("float16", {"Attention-Dtype": "float16"}),
        (
            "uint8_sqrt",
            {
                "Attention-Dtype": "uint8",
                "Attention-Coding": "sqrt; scale=row; scale-dtype=float32; scale-name=scale",
            },
        ),
    ],
)
def test_coding(coding, expected):
    assert describe_coding(coding, 0.0112345) == {**expected, "Attention-Max-Row-Error": "0.0112"}
