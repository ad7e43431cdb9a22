"""The query of a URL as the fields of a question."""

import pytest
from fastapi import Request

from attnserve.service.captures.parameters import parse_index, parse_query
from attnserve.service.problems import Invalid

KNOWN = ("layers", "queries", "quantity", "pairs", "exclude_bos", "top_keys", "keys")


def query(text, known=KNOWN, numbers=("top_keys",)):
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": text.encode("latin-1")}
    return parse_query(Request(scope), known, numbers)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("layers=0", {"layers": [0]}),
        ("layers=0,-1,5", {"layers": [0, -1, 5]}),
        ("layers=2:5", {"layers": "2:5"}),
        ("layers=all&queries=last", {"layers": "all", "queries": "last"}),
        ("pairs=[[0,1],[2,3]]", {"pairs": [[0, 1], [2, 3]]}),
        ("keys=%7B%22token%22:%22a%22%7D", {"keys": {"token": "a"}}),
        ("exclude_bos=true", {"exclude_bos": True}),
        ("top_keys=3", {"top_keys": 3}),
        ("top_keys=0.5", {"top_keys": 0.5}),
        ("top_keys=1e-05", {"top_keys": 1e-5}),
        # For whoever looks at fields to complain about.
        ("layers=", {"layers": ""}),
        ("layers=1,,2", {"layers": "1,,2"}),
        ("layers=" + "9" * 5000, {"layers": "9" * 5000}),
        ("top_keys=1e400", {"top_keys": "1e400"}),
        ("keys={broken", {"keys": "{broken"}),
        ("quantity=weights%00", {"quantity": "weights\x00"}),
    ],
)
def test_values(text, fields):
    assert query(text) == fields


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("layer=0", "layer", "unknown parameter; expected one of layers,"),
        ("layers=0&layers=1", "layers", "expected once"),
        ("%ff=1", "\ufffd", "unknown parameter"),
    ],
)
def test_names(text, field, message):
    with pytest.raises(Invalid) as caught:
        query(text)
    (fault,) = caught.value.faults
    assert fault.field == field
    assert message in fault.message


def test_many_wrong_names_are_a_few_faults():
    with pytest.raises(Invalid) as caught:
        query("&".join(f"{'x' * 500}{number}=1" for number in range(100)))
    assert len(caught.value.faults) <= 20
    assert all(len(fault.field) <= 64 for fault in caught.value.faults)


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("2", 2), ("-1", 2), ("-3", 0)])
def test_index(text, expected):
    assert parse_index(text, "head", 3, "heads") == expected


@pytest.mark.parametrize("text", ["3", "-4", "", "a", "1.0", "+1", " 1", "1_0", "\u0661", "9" * 5000])
def test_no_index(text):
    with pytest.raises(Invalid, match=r"head: expected an integer from -3 to 2 \(3 heads\), got"):
        parse_index(text, "head", 3, "heads")


def test_what_has_no_end_is_not_counted_from_it():
    with pytest.raises(Invalid, match="expected an integer from 0 to 2"):
        parse_index("-1", "zoom", 3, "zooms", is_absolute=True)
