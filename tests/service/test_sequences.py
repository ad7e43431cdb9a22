"""Ids, labels, texts and feature vectors to what a model reads, or a fault per thing wrong, by its name."""

import json

import numpy as np
import pytest

from attnserve.service.preprocess import parse_predict
from attnserve.service.problems import MAX_FAULTS, Invalid, TooLarge, describe_problem
from attnserve.service.sequences import MAX_CHARACTERS_PER_STEP, Reader, _to_float32, parse_sequences
from attnserve.text import TextReader
from tests.kinds import make_tokenizer

LABELS = ("low", "mid", "high")
WOMAN = "\N{WOMAN}"
HUGE = 10**400


@pytest.fixture(scope="module")
def vectors(make_manifest):
    """Reads two numbers a step, up to four steps."""
    manifest = make_manifest(vocabulary_size=None, num_features=2, max_length=4, task="classify_token", num_classes=3)
    return Reader(manifest)


@pytest.fixture(scope="module")
def texts(make_manifest, tmp_path_factory):
    """Reads text, up to ten tokens."""
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    path.write_text(make_tokenizer().to_str(), "utf-8")
    return Reader(make_manifest(vocabulary_size=300, max_length=10), TextReader(path))


@pytest.fixture(scope="module")
def classifier(make_manifest):
    return Reader(make_manifest(task="classify_token", num_classes=3, labels=LABELS))


def faults_of(sequences, reader) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        parse_sequences(sequences, reader)
    assert len(json.dumps(describe_problem(caught.value))) < 10_000
    return [(fault.field, fault.message) for fault in caught.value.faults]


NUMBER = "expected a number from -1e12 to 1e12, got "
PAIR = "expected a list of 2 numbers, got "
WRONG_FEATURES = {
    "a string": ("12", "[0]", "expected a list of vectors of 2 numbers, got the string '12'"),
    "null": (None, "[0]", "expected a list of vectors of 2 numbers, got null"),
    "empty": ([], "[0]", "expected at least one vector, got none"),
    "too long": ([[1, 2]] * 5, "[0]", "expected at most 4 steps, got 5"),
    "a number": ([[1, 2], 3], "[0][1]", f"{PAIR}the number 3"),
    "short": ([[1, 2], [1]], "[0][1]", f"{PAIR}a list of 1"),
    "long": ([[1, 2], [1, 2, 3], [1, 2]], "[0][1]", f"{PAIR}a list of 3"),
    "an empty vector": ([[1, 2], []], "[0][1]", f"{PAIR}a list of 0"),
    "an object": ([[1, 2], {}], "[0][1]", f"{PAIR}an object"),
    "a text of two": ([[1, 2], "12"], "[0][1]", f"{PAIR}the string '12'"),
    "true": ([[1, 2], [1, True]], "[0][1][1]", f"{NUMBER}true"),
    "false": ([[False, 2.0]], "[0][0][0]", f"{NUMBER}false"),
    "a null number": ([[1, None]], "[0][0][1]", f"{NUMBER}null"),
    "a number in a string": ([[1, "2"]], "[0][0][1]", f"{NUMBER}the string '2'"),
    "nested": ([[1, [2]]], "[0][0][1]", f"{NUMBER}a list"),
    "1e39": ([[1, 2], [1e39, 2]], "[0][1][0]", f"{NUMBER}the number 1e+39"),
    "-1e39": ([[1, -1e39]], "[0][0][1]", f"{NUMBER}the number -1e+39"),
    "beyond the limit": ([[1, 1.0001e12]], "[0][0][1]", f"{NUMBER}the number 1000100000000.0"),
    "10**39": ([[1, 10**39]], "[0][0][1]", f"{NUMBER}the number 100000000000000000000000"),
    "10**400": ([[1, HUGE]], "[0][0][1]", f"{NUMBER}the number 100000000000000000000000"),
    "NaN": ([[1, float("nan")]], "[0][0][1]", f"{NUMBER}the number nan"),
    "infinity": ([[1, float("inf")]], "[0][0][1]", f"{NUMBER}the number inf"),
}


@pytest.mark.parametrize(("sequence", "place", "message"), WRONG_FEATURES.values(), ids=WRONG_FEATURES)
def test_wrong_features_are_named(vectors, sequence, place, message):
    assert faults_of([sequence], vectors) == [(f"sequences{place}", message)]
    # Whatever is beside it, and wherever it is.
    assert faults_of([[[1, 2]], sequence], vectors) == [(f"sequences{place.replace('0', '1', 1)}", message)]


def test_all_faults_of_a_vector_are_named(vectors):
    assert [field for field, _ in faults_of([[[True, None], [1, 2], ["a", HUGE]]], vectors)] == [
        "sequences[0][0][0]",
        "sequences[0][0][1]",
        "sequences[0][2][0]",
        "sequences[0][2][1]",
    ]


def test_numbers_of_all_kinds_become_float32(vectors):
    given = [[1, -2.5], [-1e12, 1e-46], [10**12, -0.0], [16_777_217, 0.1]]
    (read,) = parse_sequences([given], vectors)
    assert read.values.dtype == np.float32
    np.testing.assert_array_equal(read.values, np.array(given, np.float64).astype(np.float32))


def test_a_leading_row_is_added_and_not_counted(make_manifest):
    task = {"task": "classify_sequence", "pooling": "first", "num_classes": 3, "leading_row": True, "causal": False}
    reader = Reader(make_manifest(vocabulary_size=None, num_features=2, max_length=4, **task))
    (read,) = parse_sequences([[[1, 2]] * 4], reader)
    assert read.values.tolist() == [[0, 0], *[[1, 2]] * 4]
    assert reader.list_tokens(read) == [
        {"id": None, "text": text, "span": None} for text in ("[cls]", None, None, None, None)
    ]


def test_at_most_twenty_faults(vectors):
    assert [field for field, _ in faults_of([[["a", "b"]] * 4] * 9, vectors)] == [
        f"sequences[{number // 8}][{number // 2 % 4}][{number % 2}]" for number in range(MAX_FAULTS)
    ]


@pytest.mark.parametrize("wrong", ["1", None, True, 1e39, [1.0]], ids=str)
@pytest.mark.parametrize("shape", [(1, 1000, 1000), (1000, 1000, 1), (1, 1, 1_000_000)], ids=str)
def test_a_million_wrong_numbers_are_few_words_and_little_work(make_manifest, monkeypatch, wrong, shape):
    num_sequences, num_steps, size = shape
    fields = {"task": "classify_token", "num_classes": 3, "max_length": num_steps}
    reader = Reader(make_manifest(vocabulary_size=None, num_features=size, **fields))
    body = [[[wrong] * size] * num_steps] * num_sequences
    described = []
    monkeypatch.setattr("attnserve.service.sequences.describe", lambda value: described.append(value) or "something")
    # Looking at a million takes a tenth of a second, describing them, or making arrays of them, half a minute.
    monkeypatch.setattr("attnserve.service.sequences._to_float32", one_in_all(_to_float32))
    assert len(faults_of(body, reader)) == MAX_FAULTS
    assert len(described) <= MAX_FAULTS


def one_in_all(work):
    """`work`, to be called at most once per sequence that is looked at."""
    left = [MAX_FAULTS]

    def limited(numbers):
        left[0] -= 1
        assert left[0] >= 0
        return work(numbers)

    return limited


@pytest.mark.parametrize("edge", [1e12, 10**12, 999_999_995_904])
def test_the_largest_numbers_are_taken_and_those_beyond_are_named(vectors, edge):
    (read,) = parse_sequences([[[edge, -edge]]], vectors)
    assert read.values.tolist() == [[999_999_995_904, -999_999_995_904]]
    for beyond in (1.0000001e12, 10**12 + 10**6, 1e300):
        assert [field for field, _ in faults_of([[[edge, beyond], [-beyond, -edge]]], vectors)] == [
            "sequences[0][0][1]",
            "sequences[0][1][0]",
        ]


IDS = "expected an integer id from 0 to 9, got "
WRONG_IDS = {
    "a label of a class": (["low"], "[0][0]", f"{IDS}the string 'low'"),
    "a text without a tokenizer": ("low", "[0]", "expected a list of ids, got the string 'low'"),
    "true": ([1, True], "[0][1]", f"{IDS}true"),
    "1.0": ([1.0], "[0][0]", f"{IDS}the number 1.0"),
    "10**400": ([HUGE], "[0][0]", f"{IDS}the number 100000000000000000000000"),
    "2**63": ([2**63], "[0][0]", f"{IDS}the number 9223372036854775808"),
    "-1": ([0, -1], "[0][1]", f"{IDS}the number -1"),
    "a vector": ([[1, 2]], "[0][0]", f"{IDS}a list"),
    "empty": ([], "[0]", "expected at least one id, got none"),
    "too long": ([1] * 101, "[0]", "expected at most 100 steps, got 101"),
}


@pytest.mark.parametrize(("sequence", "place", "message"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_wrong_ids_are_named(classifier, sequence, place, message):
    assert faults_of([sequence], classifier) == [(f"sequences{place}", message)]


def test_labels_of_a_classifier_name_classes_alone(classifier):
    assert [classifier.name_class(index) for index in range(3)] == list(LABELS)
    assert classifier.name_token(1) is None
    assert "list of ids" in classifier.kinds
    assert "label" not in classifier.kinds


WRONG_TEXTS = {
    "empty": ("", "expected a text of 1 to 10 tokens, got 0"),
    "too long": ("x" * 11, "expected a text of 1 to 10 tokens, got 11"),
    "an emoji too long": ("x" * 7 + WOMAN, "expected a text of 1 to 10 tokens, got 11"),
    "far too long": ("cat" * 10**6, "expected a text of at most 320 characters, got 3000000"),
    "null": (None, "expected a text or a list of ids, got null"),
    "an object": ({}, "expected a text or a list of ids, got an object"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_wrong_texts_are_named(texts, text, message):
    limit = MAX_CHARACTERS_PER_STEP * 65_536
    if isinstance(text, str) and len(text) > limit:
        with pytest.raises(TooLarge, match=f"expected at most {limit} characters in all"):
            parse_sequences([text], texts)
        text = text[: limit // 2]
        message = f"expected a text of at most 320 characters, got {len(text)}"
    assert faults_of([[1], text], texts) == [("sequences[1]", message)]


def test_a_text_that_fits_is_read(texts):
    text = f"the cat {WOMAN}"
    (read, again, ids) = parse_sequences([text, text, [1, 2]], texts)
    assert read.values.tolist() == again.values.tolist()
    assert read.values.dtype == np.int64
    tokens = texts.list_tokens(read)
    assert [token["text"] for token in tokens] == ["t", "he", " cat", " ", *[WOMAN] * 4]
    assert [token["span"] for token in tokens][2:5] == [(3, 7), (7, 8), (8, 9)]
    assert [token["span"] for token in texts.list_tokens(ids)] == [None, None]


def test_texts_are_counted_before_they_are_read(texts, monkeypatch):
    def refuse(text):
        raise AssertionError("a tokenizer takes seconds over a million characters")

    monkeypatch.setattr(texts.text, "encode", refuse)
    with pytest.raises(TooLarge, match="sequences: expected at most 2097152 characters in all, got 2400000"):
        parse_sequences(["x" * 300] * 8000, texts)


def test_tokens_of_texts_are_counted_as_they_are_read(texts, monkeypatch):
    read = []
    encode = texts.text.encode
    monkeypatch.setattr(texts.text, "encode", lambda text: read.append(text) or encode(text))
    sequences = ["x" * 10] * 7000
    with pytest.raises(TooLarge, match="sequences: expected at most 65536 tokens in all where there are texts"):
        parse_sequences(sequences, texts)
    assert len(read) == 6554
    # Ids are in the answer too.
    with pytest.raises(TooLarge, match="expected at most 65536 tokens"):
        parse_sequences([[1] * 10] * 6553 + ["x" * 10], texts)
    assert len(parse_sequences(sequences[:6553], texts)) == 6553


def test_tokens_that_come_with_attention_are_counted(make_manifest):
    body = {"sequences": [[1] * 100] * 656, "top_k": 1, "attention": {"queries": "last"}}
    with pytest.raises(TooLarge, match="sequences: expected at most 65536 steps, each of which the answer names"):
        parse_predict(json.dumps(body).encode(), Reader(make_manifest()))
    body["sequences"].pop()
    assert parse_predict(json.dumps(body).encode(), Reader(make_manifest())).attention is not None


WRONG_POSITIONS = ["all", "last", [0], 0]


@pytest.mark.parametrize("positions", WRONG_POSITIONS, ids=str)
def test_who_answers_once_per_sequence_has_no_positions(make_manifest, positions):
    reader = Reader(make_manifest(task="classify_sequence", pooling="last", num_classes=3))
    body = {"sequences": [[1, 2], [3]]}
    with pytest.raises(Invalid, match="positions: this model answers once per sequence; expected none, got"):
        parse_predict(json.dumps({**body, "positions": positions}).encode(), reader)
    asked = parse_predict(json.dumps(body).encode(), reader)
    assert [steps.tolist() for steps in asked.positions] == [[1], [0]]
    assert asked.top_k == 3
    assert reader.manifest.num_outputs == 3


def test_who_answers_for_every_token_does_so_unasked(classifier):
    asked = parse_predict(b'{"sequences": [[1, 2], [3]]}', classifier)
    assert [steps.tolist() for steps in asked.positions] == [[0, 1], [0]]
    with pytest.raises(Invalid, match=r"top_k: expected an integer from 1 to 3 \(the classes\), got the number 4"):
        parse_predict(b'{"sequences": [[1]], "top_k": 4}', classifier)
