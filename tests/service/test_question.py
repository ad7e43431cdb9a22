"""What may be asked about attention, and what is said of what may not: the field, what is allowed, what came."""

import json

import numpy as np
import pytest

from attnserve.service.diagnostics import DEFAULT, DIAGNOSTICS
from attnserve.service.preprocess import parse_attention, parse_predict
from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.question import QUANTITIES, Question
from attnserve.service.sequences import Reader
from attnserve.text import TextReader
from tests.kinds import make_tokenizer

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def labelled(make_manifest) -> Reader:
    return Reader(make_manifest(labels=LABELS))


@pytest.fixture(scope="module")
def texts(make_manifest, tmp_path_factory) -> Reader:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(ended=True).save(str(path))
    return Reader(make_manifest(vocabulary_size=300), TextReader(path))


@pytest.fixture(scope="module")
def features(make_manifest) -> Reader:
    fields = {"task": "classify_sequence", "num_classes": 3, "pooling": "first", "leading_row": True}
    return Reader(make_manifest(vocabulary_size=None, num_features=1, causal=False, **fields))


def parse(reader: Reader, sequences, **fields) -> Question:
    question = parse_attention(json.dumps({"sequences": sequences, **fields}).encode(), reader).attention
    assert question is not None
    return question


def lists(arrays) -> list[list[int]]:
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ("all", [[0, 1, 2, 3], [0, 1]]),
        ("last", [[3], [1]]),
        ("-1:", [[3], [1]]),
        ("::2", [[0, 2], [0]]),
        ([-1, 0], [[3, 0], [1, 0]]),
        ({"token": "b"}, [[0, 2], [1]]),
        ({"token": " b "}, None),
        ({"token": 1}, [[0, 2], [1]]),
    ],
    ids=str,
)
def test_steps_by_index_or_by_what_stands_there(labelled, queries, expected):
    sequences = [[1, 2, 1, 3], ["a", "b"]]
    if expected is None:
        with pytest.raises(Invalid, match=r"queries.token: expected a token that sequences\[0\] has, got the string"):
            parse(labelled, sequences, queries=queries)
        return
    question = parse(labelled, sequences, queries=queries, keys=queries, quantity="weights")
    assert lists(question.queries) == lists(question.keys) == expected


TEXT = "the cat at the cat"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # "the", " cat", " at"?, " the", " cat", and the end: blanks around a token do not matter.
        ({"token": "cat"}, ["cat", "cat"]),
        ({"token": "<end>"}, ["<end>"]),
        ({"span": [4, 5]}, ["cat"]),
        ({"span": [0, 18]}, None),
        ({"span": [17, 400]}, ["cat"]),
    ],
    ids=str,
)
def test_tokens_of_texts_by_their_text_or_place(texts, keys, expected):
    question = parse(texts, [TEXT], keys=keys, quantity="weights")
    shown = texts.list_tokens(parse_attention(json.dumps({"sequences": [TEXT]}).encode(), texts).inputs[0])
    found = [shown[step]["text"].strip() for step in question.keys[0].tolist()]
    assert found == (expected or [token["text"].strip() for token in shown[:-1]])


def test_ids_of_a_model_that_reads_text_are_found_by_their_text_too(texts):
    ids = parse_attention(json.dumps({"sequences": [TEXT]}).encode(), texts).inputs[0].values.tolist()
    by_text = parse(texts, [TEXT], queries={"token": "cat"})
    by_id = parse(texts, [ids], queries={"token": "cat"})
    assert lists(by_text.queries) == lists(by_id.queries)


def test_the_row_that_the_model_adds_is_found(features):
    assert lists(parse(features, [[[1], [2]]], queries={"token": "[cls]"}).queries) == [[0]]


def test_special_tokens_are_those_that_stand_for_nothing(texts, features):
    (read,) = parse_attention(json.dumps({"sequences": ["cat"]}).encode(), texts).inputs
    assert texts.find_special(read).tolist() == [*[False] * (len(read.values) - 1), True]
    ids = parse(texts, [[5, 0, 7]], diagnostics=["special"])
    assert ids.special[0].tolist() == [False, True, False]
    question = parse(features, [[[1], [2]]], quantity="weights", special_tokens="drop")
    assert lists(question.queries) == lists(question.keys) == [[1, 2]]


def test_defaults_depend_on_what_there_is(labelled, features):
    assert parse(labelled, [[1]]).diagnostics == DEFAULT
    without = {"duplicate_token", "induction"}
    assert set(DEFAULT) - set(parse(features, [[[1]]]).diagnostics) == without
    everything = set(parse(labelled, [[1]], diagnostics="all").diagnostics)
    assert everything == set(DIAGNOSTICS) - {"importance"}
    assert everything - set(parse(features, [[[1]]], diagnostics="all").diagnostics) == without
    assert "redundancy" not in parse(labelled, [[1]], diagnostics="all", pairs=[[0, 0]]).diagnostics
    assert set(parse(labelled, [[1]], diagnostics="cheap").diagnostics) == set(DEFAULT) - {"entropy"}


def test_null_is_as_if_it_were_not_there(labelled):
    fields = dict.fromkeys(("pairs", "reduce", "top_keys", "min_weight", "compare", "ablate"))
    question = parse(labelled, [[1]], quantity="weights", **fields)
    assert not question.is_sparse
    assert (question.compare, question.ablate, question.is_paired) == (None, [], False)
    body = {"sequences": [[1]], "attention": fields}
    assert parse_predict(json.dumps(body).encode(), labelled).attention is not None


WRONG = [
    ({"layers": [99]}, r"layers\[0\]: expected an integer from -2 to 1 \(2 layers\), got the number 99"),
    ({"heads": [-9]}, r"heads\[0\]: expected an integer from -4 to 3 \(4 heads\), got the number -9"),
    ({"heads": "4:"}, "heads: expected a slice with at least one of the 4 heads"),
    ({"layers": "last"}, 'layers: expected "all", a slice like "2:5", or a list'),
    ({"queries": "9:"}, r"queries: expected a slice with at least one of the 3 steps of sequences\[0\]"),
    ({"queries": {}}, r'queries: expected {"token": ...}, {"span": \[first, end\]}, or indices'),
    ({"queries": {"token": 1, "span": [0, 1]}}, "queries: expected"),
    ({"queries": {"word": 1}}, "queries: expected"),
    ({"queries": {"token": 1.0}}, "queries.token: expected the text or the id of a token, got the number 1.0"),
    ({"queries": {"token": True}}, "queries.token: expected the text or the id of a token, got true"),
    ({"queries": {"token": "z"}}, r"queries.token: expected a token that sequences\[0\] has, got the string 'z'"),
    ({"queries": {"span": [0, 1]}}, r"queries.span: expected texts, .* sequences\[0\] is none"),
    ({"queries": {"span": [1, 1]}}, r"queries.span: expected 0 <= first < end, got \[1, 1\]"),
    ({"queries": {"span": [-1, 1]}}, "queries.span: expected 0 <= first < end"),
    ({"queries": {"span": 3}}, r"queries.span: expected \[first, end\]"),
    ({"keys": [9], "quantity": "weights"}, r"keys\[0\]: expected an integer from -3 to 2"),
    ({"keys": [0]}, "keys: of the diagnostics only mass has keys"),
    ({"pairs": [[0, 0]], "layers": "all"}, "layers: expected none together with pairs"),
    ({"pairs": [[0, 0]], "heads": [0]}, "heads: expected none together with pairs"),
    ({"pairs": [[0, 4]]}, r"pairs\[0\]: expected \[layer, head\], layer from -2 to 1 and head from -4 to 3"),
    ({"pairs": [[0, 0]], "diagnostics": ["redundancy"]}, r"diagnostics\[0\]: redundancy compares the heads of a layer"),
    ({"pairs": [[0, 0]], "quantity": "qk"}, "pairs: qk is by layer: expected layers and heads"),
    ({"quantity": "maps"}, "quantity: expected one of diagnostics, weights, .*, got the string 'maps'"),
    ({"diagnostics": ["entropie"]}, r"diagnostics\[0\]: expected one of entropy, .*, got the string 'entropie'"),
    ({"diagnostics": "some"}, 'diagnostics: expected "cheap", "all" or a list of at least one of entropy'),
    ({"diagnostics": ["sink"], "quantity": "weights"}, "diagnostics: expected only with the quantity diagnostics, got"),
    (
        {"exclude_bos": True, "quantity": "weights"},
        "exclude_bos: expected only with the quantity diagnostics, got true",
    ),
    ({"special_tokens": "hide"}, "special_tokens: expected one of keep, drop, drop_renormalise"),
    ({"exclude_bos": 1}, "exclude_bos: expected true or false, got the number 1"),
    ({"reduce": "mean"}, "reduce: expected an object, got the string 'mean'"),
    ({"reduce": {"heads": "mean"}}, "reduce.heads: unknown field of the quantity diagnostics; expected none"),
    ({"quantity": "scores", "reduce": {"queries": "mean"}}, "reduce.queries: .* scores; expected one of layers, heads"),
    (
        {"quantity": "rollout", "reduce": {"layers": "mean"}},
        "reduce.layers: .* rollout; expected one of heads, queries",
    ),
    (
        {"quantity": "weights", "pairs": [[0, 0]], "reduce": {"layers": "mean"}},
        "reduce.layers: unknown field of the quantity weights of pairs; expected one of heads, queries, tokens",
    ),
    ({"quantity": "weights", "reduce": {"heads": "sum"}}, "reduce.heads: expected one of none, mean, max, min"),
    ({"quantity": "weights", "reduce": {"tokens": "word"}}, r"reduce.tokens: words .* since sequences\[0\] is none"),
    ({"top_keys": 3}, "top_keys: expected only with weights, weighted, rollout, got the number 3"),
    ({"min_weight": 0.1, "quantity": "scores"}, "min_weight: expected only with weights, weighted, rollout"),
    ({"top_keys": 0, "quantity": "weights"}, "top_keys: expected an integer from 1 to 65536"),
    ({"min_weight": 2, "quantity": "weights"}, "min_weight: expected a number from 0 to 1, got the number 2"),
    ({"dtype": "float64"}, "dtype: expected one of float32, float16, uint8_sqrt"),
    ({"dtype": "uint8_sqrt", "quantity": "signed"}, "dtype: signed may be negative"),
    ({"compare": {}}, 'compare: expected an object with "model", "version" or "sequences", got an object'),
    ({"compare": {"twin": 1}}, "compare.twin: unknown field"),
    ({"compare": {"version": 0}}, "compare.version: expected a positive integer, got the number 0"),
    ({"compare": {"version": True}}, "compare.version: expected a positive integer, got true"),
    ({"compare": {"model": 1}}, "compare.model: expected the name of a model, got the number 1"),
    ({"compare": {"sequences": [[1, 2]]}}, r"compare.sequences\[0\]: expected 3 steps, as sequences\[0\] has, got 2"),
    ({"compare": {"sequences": [[1]] * 2}}, "compare.sequences: expected 1 sequences, as on the other side, got 2"),
    ({"compare": {"sequences": [[1, 2, 99]]}}, r"compare.sequences\[0\]\[2\]: expected an integer id from 0 to 9"),
    ({"compare": {"sequences": [[1, 2, 3]]}, "quantity": "qk"}, "compare: what qk is made of is not compared"),
    ({"ablate": []}, r"ablate: expected a list of at least one \[layer, head\]"),
    ({"ablate": [[0, 9]]}, r"ablate\[0\]: expected \[layer, head\], layer from -2 to 1 and head from -4 to 3"),
    ({"dry_run": "yes"}, "dry_run: expected true or false"),
    ({"topk": 3}, "topk: unknown field; expected one of sequences"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[json.dumps(fields) for fields, _ in WRONG])
def test_what_may_not_be_asked(labelled, fields, message):
    with pytest.raises(Invalid, match=message):
        parse(labelled, [[1, 2, 3]], **fields)
    if "topk" not in fields:
        with pytest.raises(Invalid, match=rf"attention\.{message}"):
            parse_predict(json.dumps({"sequences": [[1, 2, 3]], "attention": fields}).encode(), labelled)


def test_what_a_model_has_not(make_manifest, features):
    with pytest.raises(Invalid, match=r"diagnostics\[1\]: this model reads features, which are no tokens"):
        parse(features, [[[1]]], diagnostics=["sink", "induction"])
    with pytest.raises(Invalid, match=r"special_tokens: expected steps of sequences\[0\] that are no special tokens"):
        parse(features, [[[1]]], special_tokens="drop", queries=[0])
    plain = make_manifest()
    for layer in plain.layers:
        del layer.captures["metric"]
    with pytest.raises(Invalid, match="quantity: none of the layers asked for has a metric"):
        parse(Reader(plain), [[1]], quantity="metric")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"queries": "last", "keys": {"token": 1}, "quantity": "weights"}, "keys"),
        ({"queries": "::1"}, "queries"),
        ({"layers": [0] * 65_537}, "layers"),
        ({"queries": "last", "ablate": [[0, 0]] * 65_537}, "ablate"),
    ],
)
def test_what_is_too_much(labelled, fields, field):
    with pytest.raises(TooLarge) as caught:
        parse(labelled, [[1] * 100] * 656, **fields)
    assert [fault.field for fault in caught.value.faults] == [field]


def test_every_quantity_has_an_answer(labelled):
    for quantity in QUANTITIES:
        assert parse(labelled, [[1, 2]], quantity=quantity).quantity == quantity
