"""The body of a request to capture."""

import json

import pytest

from attnserve.service.captures.request import check_seconds, parse_capture
from attnserve.service.problems import BadRequest, Invalid
from attnserve.service.sequences import Reader


def parse(manifest, **fields):
    return parse_capture(json.dumps({"sequences": [[1, 2, 3]], **fields}).encode(), Reader(manifest))


def test_defaults(make_manifest):
    asked = parse(make_manifest())
    assert (asked.layers, asked.store, asked.keep_seconds) == ([0, 1], "computed", None)
    assert asked.predict.lengths == [3]
    assert asked.predict.positions[0].tolist() == [2]
    assert asked.predict.attention is None


def test_what_clients_set(make_manifest):
    asked = parse(make_manifest(), layers=[-1, 1], store="float16", keep_seconds=2.5, top_k=3, positions="all")
    assert (asked.layers, asked.store, asked.keep_seconds) == ([1], "float16", 2.5)
    assert asked.predict.top_k == 3
    assert parse(make_manifest(), keep_seconds=None, top_k=None).keep_seconds is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sequences": [[1], [2]]}, "sequences"),
        ({"sequences": []}, "sequences"),
        ({"sequences": [[99]]}, "sequences[0][0]"),
        ({"layers": []}, "layers"),
        ({"layers": [2]}, "layers[0]"),
        ({"layers": None}, "layers"),
        ({"store": "half"}, "store"),
        ({"store": None}, "store"),
        ({"keep_seconds": 0.5}, "keep_seconds"),
        ({"keep_seconds": "60"}, "keep_seconds"),
        ({"keep_seconds": True}, "keep_seconds"),
        ({"heads": [0]}, "heads"),
        ({"continue": 3}, "continue"),
        ({"timeout_ms": 0}, "timeout_ms"),
    ],
)
def test_faults(make_manifest, fields, field):
    with pytest.raises(Invalid) as caught:
        parse(make_manifest(), **fields)
    assert caught.value.faults[0].field == field


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"1"])
def test_no_object(make_manifest, body):
    with pytest.raises(BadRequest):
        parse_capture(body, Reader(make_manifest()))


def test_seconds():
    assert check_seconds(None, 300) == 300
    assert check_seconds(60, 300) == 60
    with pytest.raises(Invalid, match="keep_seconds: expected at most 300, got 301"):
        check_seconds(301, 300)
