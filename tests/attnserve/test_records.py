import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.records import RecordError, describe, from_json, read_text, to_json


@dataclass(frozen=True, kw_only=True)
class Head:
    name: str
    size: int = 4
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    heads: tuple[Head, ...]
    causal: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)
    spare: Head | None = None
    notes: Any = None


MODEL = Model(
    heads=(Head(name="a", scale=0.5), Head(name="b", size=2)),
    limits={"tokens": 9},
    spare=Head(name="c"),
    notes={"any": [1, None, "thing"]},
)
DOCUMENT = {
    "heads": [{"name": "a", "size": 4, "scale": 0.5}, {"name": "b", "size": 2, "scale": None}],
    "causal": True,
    "limits": {"tokens": 9},
    "spare": {"name": "c", "size": 4, "scale": None},
    "notes": {"any": [1, None, "thing"]},
}


def test_records_become_plain_json() -> None:
    assert to_json(MODEL) == DOCUMENT
    assert json.loads(json.dumps(to_json(MODEL))) == DOCUMENT


def test_json_becomes_records() -> None:
    assert from_json(Model, DOCUMENT) == MODEL


def test_what_is_left_out_has_its_default() -> None:
    assert from_json(Model, {"heads": []}) == Model(heads=())


def test_an_integer_is_read_as_a_number_where_one_is_expected() -> None:
    scale = from_json(Head, {"name": "a", "scale": 2}).scale
    assert (scale, type(scale)) == (2.0, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": None}, "heads: expected a list, got NoneType None"),
        ({"heads": {"0": {}}}, "heads: expected a list, got dict {'0': {}}"),
        ({"heads": "ab"}, "heads: expected a list, got str 'ab'"),
        ({"heads": [{"name": "a"}, 3]}, "heads[1]: expected an object, got int 3"),
        ({"heads": [{}]}, "heads[0].name: missing"),
        ({"heads": [{"name": "a", "colour": 1}]}, "heads[0].colour: unknown field; expected one of name, size, scale"),
        ({"heads": [{"name": 1}]}, "heads[0].name: expected str, got int 1"),
        ({"heads": [{"name": "a", "size": True}]}, "heads[0].size: expected int, got bool True"),
        ({"heads": [{"name": "a", "size": 1.0}]}, "heads[0].size: expected int, got float 1.0"),
        ({"heads": [{"name": "a", "size": "1"}]}, "heads[0].size: expected int, got str '1'"),
        ({"heads": [{"name": "a", "size": None}]}, "heads[0].size: expected int, got NoneType None"),
        ({"heads": [{"name": "a", "scale": False}]}, "heads[0].scale: expected float, got bool False"),
        ({"heads": [{"name": "a", "scale": "2"}]}, "heads[0].scale: expected float, got str '2'"),
        ({"causal": 1}, "causal: expected bool, got int 1"),
        ({"limits": [9]}, "limits: expected an object, got list [9]"),
        ({"limits": {"tokens": 9.5}}, "limits.tokens: expected int, got float 9.5"),
        ({"spare": []}, "spare: expected an object, got list []"),
        ({"spare": {}}, "spare.name: missing"),
        ({"size": 3}, "size: unknown field; expected one of heads, causal, limits, spare, notes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named_by_its_path(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        from_json(Model, DOCUMENT | changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("document", [None, [], "x", 3], ids=repr)
def test_a_document_that_is_no_object(document: object) -> None:
    with pytest.raises(RecordError, match=r"^document: expected an object, got "):
        from_json(Model, document)


def test_complaints_begin_where_the_caller_says() -> None:
    with pytest.raises(RecordError, match=r"^manifest\.heads\[0\]\.name: missing$"):
        from_json(Model, {"heads": [{}]}, "manifest")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
near_misses = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(DOCUMENT, json_values) | {"heads": st.lists(json_values, max_size=3)}
)


@settings(deadline=None, derandomize=True)
@given(near_misses | json_values)
def test_any_json_is_a_record_or_a_complaint(document: Any) -> None:
    try:
        record = from_json(Model, document)
    except RecordError:
        return
    # NaN is a number to JSON's reader, and not equal to itself.
    assert from_json(Model, to_json(record)) == record or "nan" in repr(record)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "int 1"),
        ("a", "str 'a'"),
        ("x" * 38, f"str '{'x' * 38}'"),
        ("x" * 39, f"str '{'x' * 36}..."),
        (["secret" * 1000], f"list ['{('secret' * 6)[:35]}..."),
    ],
    ids=["int", "str", "forty", "forty-one", "long"],
)
def test_values_are_described_briefly(value: object, text: str) -> None:
    assert describe(value) == text


def test_a_text_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("größe", "utf-8")
    assert read_text(path, 7) == "größe"
    with pytest.raises(RecordError, match=r"a\.json: expected at most 6 bytes, got 7$"):
        read_text(path, 6)


def test_what_is_no_text_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"gr\xf6\xdfe")
    with pytest.raises(RecordError, match=r"latin: cannot be read as UTF-8 text: "):
        read_text(tmp_path / "latin", 100)
    with pytest.raises(RecordError, match=r"nowhere: no such file$"):
        read_text(tmp_path / "nowhere", 100)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError, match=r"folder: cannot be read as UTF-8 text: "):
        read_text(tmp_path / "folder", 10**6)
