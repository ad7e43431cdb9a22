"""What a body becomes, or why not. The running service is asked the same in tests/http/test_errors.py."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.diagnostics import DEFAULT
from attnserve.service.preprocess import PredictRequest, parse_attention, parse_predict
from attnserve.service.problems import BadRequest, Invalid, TooLarge
from attnserve.service.selection import describe
from attnserve.service.sequences import Reader

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def manifest(make_manifest):
    return make_manifest(labels=LABELS)


def parse(manifest, document, how=parse_predict) -> PredictRequest:
    return how(document if isinstance(document, bytes) else json.dumps(document).encode(), Reader(manifest))


def read(request) -> list[list[int]]:
    return lists(one.values for one in request.inputs)


def lists(arrays) -> list[list[int]]:
    arrays = list(arrays)
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    return [array.tolist() for array in arrays]


def test_defaults(manifest):
    request = parse(manifest, {"sequences": [[1, 2, 3], [4]]})
    assert read(request) == [[1, 2, 3], [4]]
    assert lists(request.positions) == [[2], [0]]
    assert (request.top_k, request.attention) == (5, None)


def test_default_top_k_fits_a_small_vocabulary(make_manifest):
    assert parse(make_manifest(vocabulary_size=3), {"sequences": [[1]]}).top_k == 3


def test_defaults_of_attention(manifest):
    for request in (
        parse(manifest, {"sequences": [[1, 2, 3], [4]]}, parse_attention),
        parse(manifest, {"sequences": [[1, 2, 3], [4]], "attention": {}}),
    ):
        attention = request.attention
        assert attention is not None
        assert (attention.layers, attention.heads) == ([0, 1], [0, 1, 2, 3])
        assert lists(attention.queries) == [[0, 1, 2], [0]]
        assert (attention.quantity, attention.dtype) == ("diagnostics", "float32")
        assert attention.diagnostics == DEFAULT


def test_labels_become_ids(manifest):
    request = parse(manifest, {"sequences": [["c", "a"], [9], ["j"]]})
    assert read(request) == [[2, 0], [9], [9]]


def test_labels_are_laid_out_once_per_model(make_manifest):
    class Counted(tuple):
        num_reads = 0

        def __iter__(self):
            Counted.num_reads += 1
            return super().__iter__()

    reader = Reader(make_manifest(labels=Counted(LABELS)))
    Counted.num_reads = 0
    for sequences in ([["c"], [2, 3]], [["a", "b"]], [[1]]):
        parse_predict(json.dumps({"sequences": sequences}).encode(), reader)
    assert Counted.num_reads == 1, "50,000 labels for every request"


def test_the_same_measure_twice_is_once(manifest):
    body = {"sequences": [[1]], "diagnostics": ["sink", "entropy", "sink"]}
    request = parse(manifest, body, parse_attention)
    assert request.attention is not None
    assert request.attention.diagnostics == ("sink", "entropy")


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True)
@given(lengths=lengths, data=st.data())
def test_positions_and_queries_are_absolute(manifest, lengths, data):
    shortest = min(lengths)
    indices = st.lists(st.integers(-shortest, shortest - 1), min_size=1, max_size=6)
    wanted = data.draw(indices)
    body = {"sequences": [[0] * length for length in lengths], "positions": wanted, "queries": wanted, "top_k": 1}
    request = parse(manifest, body, parse_attention)
    expected = [[range(length)[index] for index in wanted] for length in lengths]
    assert lists(request.positions) == expected
    assert request.attention is not None
    assert lists(request.attention.queries) == expected


def test_a_list_is_checked_against_the_shortest(manifest):
    with pytest.raises(
        Invalid, match=r"positions\[1\]: expected an integer from -1 to 0 \(1 steps of sequences\[2\]\)"
    ):
        parse(manifest, {"sequences": [[1, 2, 3], [1, 2], [1]], "positions": [-1, 1]})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"sequences": [[0]] * 13_108, "top_k": 5}, "top_k"),
        ({"sequences": [[0] * 64] * 1025, "positions": "all", "top_k": 1}, "top_k"),
        ({"sequences": [[0]] * 65_537, "top_k": 1}, "sequences"),
        ({"sequences": [[0]], "positions": [0] * 65_537}, "positions"),
        ({"sequences": [[0]] * 60_000, "positions": [0] * 60_000}, "top_k"),
        ({"sequences": [[0]] * 60_000, "top_k": 1, "attention": {"queries": [0] * 60_000}}, "attention.queries"),
        ({"sequences": [[0] * 64] * 1025, "top_k": 1, "attention": {}}, "attention.queries"),
        ({"sequences": [[0]], "attention": {"heads": [0] * 65_537}}, "attention.heads"),
    ],
)
def test_what_is_too_much_is_counted_not_laid_out(manifest, body, field):
    # 60,000 x 60,000 would be 29 GB if it were laid out first.
    with pytest.raises(TooLarge) as caught:
        parse(manifest, body)
    assert [fault.field for fault in caught.value.faults] == [field]


@pytest.mark.parametrize(
    "body", [{"sequences": [[0]] * 13_107, "top_k": 5}, {"sequences": [[0] * 64] * 1024, "top_k": 1, "attention": {}}]
)
def test_at_the_edge_is_not_too_much(manifest, body):
    assert parse(manifest, body).inputs


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"NaN", b"\xff", b'{"sequences": [[1e999]]}', b"[" * 5000])
def test_no_object(manifest, body):
    with pytest.raises(BadRequest, match="body: expected"):
        parse(manifest, body)


def test_faults_are_collected_up_to_a_limit(manifest):
    body = {"sequences": [[1, "x", True], "a", [], [0.5] * 100, [11]]}
    with pytest.raises(Invalid) as caught:
        parse(manifest, body)
    fields = [fault.field for fault in caught.value.faults]
    assert fields[:4] == ["sequences[0][1]", "sequences[0][2]", "sequences[1]", "sequences[2]"]
    assert fields[4:] == [f"sequences[3][{place}]" for place in range(16)]
    assert "sequences[0][1]: expected an integer id from 0 to 9 (a sequence is either" in str(caught.value.detail)


def test_a_mixture_is_told_so(manifest):
    with pytest.raises(Invalid) as caught:
        parse(manifest, {"sequences": [[1, "b"]]})
    assert "either all ids or all labels" in caught.value.detail


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (3, "the number 3"),
        (1.5, "the number 1.5"),
        (10**300, "the number 100000000000000000000000"),
        ("a", "the string 'a'"),
        ("x" * 25, "the string 'xxxxxxxxxxxxxxxxxxxxxxxx'..."),
        ("\n\x00", r"the string '\n\x00'"),
        ([], "an empty list"),
        ([1], "a list"),
        ({}, "an object"),
    ],
)
def test_values_are_described_briefly(value, words):
    assert describe(value) == words


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
fields = st.sampled_from(
    ["sequences", "top_k", "positions", "attention", "layers", "heads", "queries", "quantity", "diagnostics", "dtype"]
)


@settings(deadline=None, derandomize=True)
@given(document=json_values | st.dictionaries(fields, json_values, max_size=5), how=st.sampled_from([0, 1]))
def test_anything_is_parsed_or_is_a_problem(manifest, document, how):
    body = json.dumps(document).encode("utf-8", "surrogatepass")
    parse = (parse_predict, parse_attention)[how]
    with contextlib.suppress(BadRequest, Invalid, TooLarge):
        request = parse(body, Reader(manifest))
        assert len(request.inputs) == len(request.positions)
