"""Models as the Open Inference Protocol sees them, and tensors turned into sequences."""

import numpy as np
import pytest

from attnserve.service.attention import held_bytes
from attnserve.service.oip.answer import count_numbers
from attnserve.service.oip.mapping import input_specs, optional_outputs, output_spec, parse_asked
from attnserve.service.oip.request import Request, Wanted
from attnserve.service.problems import Problem, TooLarge
from attnserve.service.sequences import Reader
from attnserve.text import TextReader
from tests.kinds import make_tokenizer


@pytest.fixture(scope="module")
def reader(make_manifest):
    return Reader(make_manifest(max_length=6))


@pytest.fixture(scope="module")
def text_reader(make_manifest, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    tokenizer = make_tokenizer()
    path.write_text(tokenizer.to_str(), "utf-8")
    return Reader(make_manifest(vocabulary_size=tokenizer.get_vocab_size(), max_length=6), TextReader(path))


def ask(reader, *, outputs=("logits",), binary=True, parameters=None, **inputs):
    specs = {spec.name: spec for spec in (output_spec(reader.manifest), *optional_outputs(reader.manifest))}
    wanted = [Wanted(spec=specs[name], is_binary=binary) for name in outputs]
    arrays = {name: np.array(array) for name, array in inputs.items()}
    return parse_asked(Request(inputs=arrays, outputs=wanted, parameters=parameters or {}), reader)


def sequences_of(asked):
    return [read.values.tolist() for read in asked.predict.inputs]


def test_lengths_cut_what_is_never_read(reader):
    tokens = np.array([[1, 2, 99], [3, -1, -(2**63)]])
    asked = ask(reader, tokens=tokens, lengths=[2, 1])
    assert sequences_of(asked) == [[1, 2], [3]]
    # Padding may be dropped: nothing keeps the body.
    assert not any(np.shares_memory(read.values, tokens) for read in asked.predict.inputs)
    assert sequences_of(ask(reader, tokens=[[1, 2], [3, 4]])) == [[1, 2], [3, 4]]


def test_sequences_are_called_as_the_client_called_them(reader, text_reader):
    assert ask(reader, tokens=[[1, 2]]).predict.field == "tokens"
    assert ask(text_reader, text=["the"]).predict.field == "text"


FAULTS = {
    "length 0": ({"tokens": [[1, 2]], "lengths": [0]}, "lengths[0]", 422),
    "length negative": ({"tokens": [[1, 2]], "lengths": [-1]}, "lengths[0]", 422),
    "longer than the tensor": ({"tokens": [[1, 2]], "lengths": [3]}, "lengths[0]", 422),
    "longer than the model": ({"tokens": [[1] * 7]}, "tokens", 422),
    "longest there is": ({"tokens": [[1, 2]], "lengths": [2**63 - 1]}, "lengths[0]", 422),
    "too few lengths": ({"tokens": [[1], [2]], "lengths": [1]}, "lengths", 400),
    "id beyond": ({"tokens": [[1, 9], [10, 1]]}, "tokens[1][0]", 422),
    "id negative": ({"tokens": [[1, -1]]}, "tokens[0][1]", 422),
    "neither": ({"lengths": [1]}, "inputs", 400),
    "positions a list": ({"tokens": [[1]], "parameters": {"positions": [0]}}, "parameters.positions", 422),
    "positions null": ({"tokens": [[1]], "parameters": {"positions": None}}, "parameters.positions", 422),
    "timeout negative": ({"tokens": [[1]], "parameters": {"timeout": -1}}, "parameters.timeout", 422),
    "timeout true": ({"tokens": [[1]], "parameters": {"timeout": True}}, "parameters.timeout", 422),
    "timeout a text": ({"tokens": [[1]], "parameters": {"timeout": "1"}}, "parameters.timeout", 422),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(reader, name):
    inputs, field, status = FAULTS[name]
    with pytest.raises(Problem) as caught:
        ask(reader, **inputs)
    assert [fault.field for fault in caught.value.faults] == [field]
    assert caught.value.status == status


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_features_are_finite_as_far_as_they_are_read(make_manifest, wrong):
    reader = Reader(
        make_manifest(vocabulary_size=None, num_features=2, task="classify_sequence", num_classes=3, pooling="last")
    )
    features = np.ones((2, 3, 2), np.float32)
    features[1, 2, 1] = wrong
    assert len(ask(reader, features=features, lengths=[3, 2]).predict.inputs[1].values) == 2
    with pytest.raises(Problem, match=r"features\[1\]\[2\]: expected numbers from -1e12 to 1e12"):
        ask(reader, features=features)
    with pytest.raises(Problem, match=r"parameters.positions"):
        ask(reader, features=features, lengths=[3, 2], parameters={"positions": "all"})


def test_texts_are_one_more_input(text_reader):
    assert [spec.name for spec in input_specs(text_reader)] == ["text", "tokens", "lengths"]
    asked = ask(text_reader, text=np.array(["cat", " cat"], object))
    assert asked.predict.lengths == [1, 1]
    for inputs, field in [
        ({"text": np.array(["a", ""], object)}, "text[1]"),
        ({"text": np.array(["a" * 7], object)}, "text[0]"),
        ({"text": np.array(["a"], object), "tokens": [[1]]}, "inputs"),
        ({"text": np.array(["a"], object), "lengths": [1]}, "inputs"),
    ]:
        with pytest.raises(Problem) as caught:
            ask(text_reader, **inputs)
        assert [fault.field for fault in caught.value.faults] == [field]


def test_a_timeout_is_in_microseconds_and_0_is_none(reader):
    assert ask(reader, tokens=[[1]], parameters={"timeout": 1500}).predict.timeout_ms == 1.5
    assert ask(reader, tokens=[[1]], parameters={"timeout": 0}).predict.timeout_ms is None
    assert ask(reader, tokens=[[1]]).predict.timeout_ms is None


def test_captures_are_those_of_the_outputs(reader):
    assert ask(reader, tokens=[[1]]).captures == frozenset()
    asked = ask(reader, tokens=[[1, 2]], outputs=("layers.1.weights", "layers.0.hidden"))
    assert asked.captures == {"layers.1.query", "layers.1.key", "layers.0.hidden"}
    assert asked.predict.attention.layers == [1]
    # What is captured for an output is kept until it is answered.
    assert asked.capture_bytes == 4 * 2 * 32
    assert held_bytes(asked.predict, reader.manifest) == 2 * 8 + 4 * (10 + 2 * 64)


def test_numbers_are_counted_with_their_padding(reader):
    inputs = {"tokens": [[1] * 6, [1] * 6, [1] * 6], "lengths": [5, 1, 1]}
    outputs = ("logits", "layers.0.weights")
    assert count_numbers(ask(reader, outputs=outputs, **inputs), max_response_bytes=10**6) == 3 * 10 + 3 * 4 * 5 * 5
    asked = ask(reader, outputs=outputs, parameters={"positions": "all"}, **inputs)
    assert count_numbers(asked, max_response_bytes=4 * 450) == 3 * 5 * 10 + 3 * 4 * 5 * 5
    with pytest.raises(TooLarge, match=r"outputs\[1\]: an answer may hold at most 1799 bytes"):
        count_numbers(asked, max_response_bytes=1799)
    asked = ask(reader, tokens=np.ones((1000, 6), int), outputs=outputs, binary=False)
    with pytest.raises(TooLarge, match=r"outputs\[1\]: an answer may hold at most 65536 numbers as JSON"):
        count_numbers(asked, max_response_bytes=1)
