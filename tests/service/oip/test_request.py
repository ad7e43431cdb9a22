"""Requests of the Open Inference Protocol: what is read, and that anything else is refused by name."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.oip.request import MAX_ID, parse_request
from attnserve.service.oip.tensors import Spec
from attnserve.service.problems import Problem
from attnserve.service.selection import MAX_ENTRIES

TOKENS = Spec(name="tokens", datatype="INT64", shape=(-1, -1))
FEATURES = Spec(name="features", datatype="FP32", shape=(-1, -1, 3))
TEXT = Spec(name="text", datatype="BYTES", shape=(-1,))
LENGTHS = Spec(name="lengths", datatype="INT64", shape=(-1,), is_optional=True)
LOGITS = Spec(name="logits", datatype="FP32", shape=(-1, -1, 8))
HIDDEN = Spec(name="layers.0.hidden", datatype="FP32", shape=(-1, -1, 4))
OUTPUTS = [LOGITS, HIDDEN]


def make_tensor(**fields):
    return {"name": "tokens", "datatype": "INT64", "shape": [2, 2], "data": [1, 2, 3, 4], **fields}


def parse(document, binary=b"", inputs=(TOKENS, LENGTHS)):
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_request(head + binary, str(len(head)) if binary else None, inputs, OUTPUTS)


def pack_texts(*texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_json(data):
    read = parse({"id": "x", "inputs": [make_tensor(data=data)], "parameters": {"mine": 1}})
    np.testing.assert_array_equal(read.inputs["tokens"], [[1, 2], [3, 4]])
    assert (read.id, read.parameters) == ("x", {"mine": 1})
    assert [(wanted.spec.name, wanted.is_binary) for wanted in read.outputs] == [("logits", False)]


def test_binary():
    tokens, lengths = np.array([[1, 2**62], [-3, 4]]), np.array([2, 1])
    inputs = [
        make_tensor(data=lengths.tolist(), name="lengths", shape=[2]),
        {**make_tensor(parameters={"binary_data_size": 32})},
    ]
    del inputs[1]["data"]
    read = parse({"inputs": inputs, "parameters": {"binary_data_output": True}}, tokens.tobytes())
    np.testing.assert_array_equal(read.inputs["tokens"], tokens)
    np.testing.assert_array_equal(read.inputs["lengths"], lengths)
    assert read.outputs[0].is_binary


@pytest.mark.parametrize("is_binary", [True, False])
def test_texts(is_binary):
    texts = ["", "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}", "\x00\n", "x" * 1000]
    tensor = make_tensor(name="text", datatype="BYTES", shape=[4], data=texts)
    binary = pack_texts(*(text.encode() for text in texts))
    if is_binary:
        tensor["parameters"] = {"binary_data_size": len(binary)}
        del tensor["data"]
    read = parse({"inputs": [tensor]}, binary if is_binary else b"", (TEXT,))
    assert read.inputs["text"].tolist() == texts


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True), (None, True, True)],
)
def test_an_output_is_binary_if_it_or_else_the_request_says_so(default, own, expected):
    output = {"name": "layers.0.hidden", **({} if own is None else {"parameters": {"binary_data": own, "x": 1}})}
    parameters = {} if default is None else {"binary_data_output": default}
    read = parse({"inputs": [make_tensor()], "outputs": [output], "parameters": parameters})
    assert [(wanted.spec, wanted.is_binary) for wanted in read.outputs] == [(HIDDEN, expected)]
    # No outputs are the default ones.
    read = parse({"inputs": [make_tensor()], "outputs": [], "parameters": parameters})
    assert [(wanted.spec, wanted.is_binary) for wanted in read.outputs] == [(LOGITS, default is True)]


@pytest.mark.parametrize(
    ("spec", "body", "expected"),
    [
        (TOKENS, np.array([1, 2, 3]).tobytes(), [[1, 2, 3]]),
        (FEATURES, np.arange(6, dtype="<f4").tobytes(), [[[0, 1, 2], [3, 4, 5]]]),
        (TEXT, "\N{SNOWMAN}".encode(), ["\N{SNOWMAN}"]),
    ],
)
def test_a_raw_body_is_one_sequence(spec, body, expected):
    read = parse_request(body, "0", (spec, LENGTHS), OUTPUTS)
    assert read.inputs[spec.name].tolist() == expected
    assert [(wanted.spec, wanted.is_binary) for wanted in read.outputs] == [(LOGITS, True)]


def with_tensor(**fields):
    return {"inputs": [make_tensor(**fields)]}


SIZE = "inputs[0].parameters.binary_data_size"
FAULTS = {
    "no json": (b"{", "body", 400),
    "no object": (b"[1]", "body", 400),
    "nothing": (b"", "body", 400),
    "no inputs": ({}, "inputs", 400),
    "inputs null": ({"inputs": None}, "inputs", 400),
    "input missing": ({"inputs": []}, "inputs", 400),
    "input a number": ({"inputs": [1]}, "inputs[0]", 400),
    "no name": ({"inputs": [{}]}, "inputs[0].name", 400),
    "name a number": (with_tensor(name=1), "inputs[0].name", 400),
    "another name": (with_tensor(name="x" * 1000), "inputs[0].name", 400),
    "twice": ({"inputs": [make_tensor(), make_tensor()]}, "inputs[1].name", 400),
    "id a number": ({**with_tensor(), "id": 1}, "id", 400),
    "id too long": ({**with_tensor(), "id": "x" * (MAX_ID + 1)}, "id", 400),
    "parameters a list": ({**with_tensor(), "parameters": []}, "parameters", 400),
    "binary_data_output 1": (
        {**with_tensor(), "parameters": {"binary_data_output": 1}},
        "parameters.binary_data_output",
        400,
    ),
    "another datatype": (with_tensor(datatype="INT32"), "inputs[0].datatype", 400),
    "no datatype": (with_tensor(datatype=None), "inputs[0].datatype", 400),
    "shape a number": (with_tensor(shape=4), "inputs[0].shape", 400),
    "one axis": (with_tensor(shape=[4]), "inputs[0].shape", 400),
    "many axes": (with_tensor(shape=[1] * 100_000), "inputs[0].shape", 400),
    "size 0": (with_tensor(shape=[2**62, 0], data=[]), "inputs[0].shape", 400),
    "size negative": (with_tensor(shape=[-2, -2]), "inputs[0].shape", 400),
    "size true": (with_tensor(shape=[True, 4]), "inputs[0].shape", 400),
    "size 2.0": (with_tensor(shape=[2.0, 2]), "inputs[0].shape", 400),
    "size a list": (with_tensor(shape=[[2], {}]), "inputs[0].shape", 400),
    "sizes enormous": (with_tensor(shape=[2, 2**63]), "inputs[0].data", 400),
    "sizes beyond 64 bits": (with_tensor(shape=[2, 2**64]), "inputs[0].shape", 400),
    "too many sequences": (with_tensor(shape=[MAX_ENTRIES + 1, 1]), "inputs[0].shape", 413),
    "no data": (with_tensor(data=None), "inputs[0].data", 400),
    "data an object": (with_tensor(data={}), "inputs[0].data", 400),
    "too few": (with_tensor(data=[1, 2, 3]), "inputs[0].data", 400),
    "too many": (with_tensor(data=[1, 2, 3, 4, 5]), "inputs[0].data", 400),
    "ragged": (with_tensor(data=[[1, 2, 3], [4]]), "inputs[0].data", 400),
    "half nested": (with_tensor(data=[[1, 2], 3, 4]), "inputs[0].data", 400),
    "nested too deep": (with_tensor(data=[[[1], [2]], [[3], [4]]]), "inputs[0].data", 400),
    "number with a point": (with_tensor(data=[1, 2, 3, 4.0]), "inputs[0].data", 400),
    "true": (with_tensor(data=[1, 2, 3, True]), "inputs[0].data", 400),
    "null": (with_tensor(data=[1, 2, 3, None]), "inputs[0].data", 400),
    "beyond 63 bits": (with_tensor(data=[1, 2, 3, 2**63]), "inputs[0].data", 422),
    "shared memory": (
        with_tensor(parameters={"shared_memory_region": "x"}),
        "inputs[0].parameters.shared_memory_region",
        400,
    ),
    "outputs an object": ({**with_tensor(), "outputs": {}}, "outputs", 400),
    "output a string": ({**with_tensor(), "outputs": ["logits"]}, "outputs[0]", 400),
    "another output": ({**with_tensor(), "outputs": [{"name": "x"}]}, "outputs[0].name", 400),
    "output twice": ({**with_tensor(), "outputs": [{"name": "logits"}] * 2}, "outputs[1].name", 400),
    "binary_data null": (
        {**with_tensor(), "outputs": [{"name": "logits", "parameters": {"binary_data": None}}]},
        "outputs[0].parameters.binary_data",
        400,
    ),
    "classification": (
        {**with_tensor(), "outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
        "outputs[0].parameters.classification",
        400,
    ),
    "size without bytes": (with_tensor(parameters={"binary_data_size": 32}), SIZE, 400),
}


def check_problem(problem, status, field):
    assert problem.status == status
    assert [fault.field for fault in problem.faults] == [field]
    assert len(problem.detail) < 500


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name):
    document, field, status = FAULTS[name]
    with pytest.raises(Problem) as caught:
        parse(document)
    check_problem(caught.value, status, field)


@pytest.mark.parametrize(
    ("size", "binary", "field"),
    [
        (-1, bytes(32), SIZE),
        (33, bytes(32), SIZE),
        (True, bytes(32), SIZE),
        ("32", bytes(32), SIZE),
        (None, bytes(32), SIZE),
        ([0] * 10_000, bytes(32), SIZE),
        (24, bytes(24), SIZE),
        (31, bytes(32), SIZE),
        (0, bytes(1), SIZE),
        (32, bytes(33), "body"),
    ],
)
def test_bytes_must_fit(size, binary, field):
    tensor = make_tensor(parameters={"binary_data_size": size})
    del tensor["data"]
    with pytest.raises(Problem) as caught:
        parse({"inputs": [tensor]}, binary)
    check_problem(caught.value, 400, field)


def test_bytes_that_no_tensor_claims_or_that_come_twice():
    for tensor, field in (
        (make_tensor(), "body"),
        (make_tensor(parameters={"binary_data_size": 32}), "inputs[0].data"),
    ):
        with pytest.raises(Problem) as caught:
            parse({"inputs": [tensor]}, bytes(32))
        check_problem(caught.value, 400, field)


@pytest.mark.parametrize(
    ("binary", "field"),
    [
        (pack_texts(b"a"), "inputs[0]"),
        (pack_texts(b"a", b"b", b"c"), "inputs[0]"),
        (pack_texts(b"a", b"b") + b"x", "inputs[0]"),
        (pack_texts(b"a", b"bc")[:-1], "inputs[0]"),
        (pack_texts(b"a") + b"\xff\xff\xff\xffb", "inputs[0]"),
        (pack_texts(b"a") + b"\x01\x00", "inputs[0]"),
        (pack_texts(b"a", b"\xff"), "inputs[0][1]"),
        (pack_texts(b"a", b"\xed\xa0\x80"), "inputs[0][1]"),
    ],
)
def test_texts_must_fit(binary, field):
    parameters = {"binary_data_size": len(binary)}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": parameters}
    with pytest.raises(Problem) as caught:
        parse({"inputs": [tensor]}, binary, (TEXT,))
    check_problem(caught.value, 400, field)


@pytest.mark.parametrize("length", ["", "-1", "+1", "1.0", " 1", "x", "\xb2", "99", "0" * 5000 + "1", "9" * 5000])
def test_a_wrong_length_of_the_json_is_named(length):
    with pytest.raises(Problem) as caught:
        parse_request(b"{}", length, [TOKENS], OUTPUTS)
    check_problem(caught.value, 400, "Inference-Header-Content-Length")


@pytest.mark.parametrize(("spec", "body"), [(TOKENS, b""), (TOKENS, b"1234567"), (FEATURES, bytes(8)), (TEXT, b"\xff")])
def test_a_wrong_raw_body_is_named(spec, body):
    with pytest.raises(Problem) as caught:
        parse_request(body, "0", [spec], OUTPUTS)
    check_problem(caught.value, 400, "body")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(["name", "datatype", "shape", "data", "parameters"]),
    JSON
    | st.sampled_from(["tokens", "lengths", "INT64", [2, 2], [2], {"binary_data_size": 16}, {"binary_data": True}])
    | st.lists(st.integers(-1, 5) | st.just(2**62), max_size=5),
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(FIELDS.map(lambda fields: {**make_tensor(), **fields}), max_size=3) | JSON,
        "outputs": st.lists(FIELDS.map(lambda fields: {"name": "logits", **fields}), max_size=3) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "positions"]), JSON) | JSON,
        "id": JSON,
    },
)


def parse_any(body, length, inputs):
    """Read it or refuse it by name, in memory a small multiple of the body's."""
    problem = None
    tracemalloc.start()
    try:
        parse_request(body, length, inputs, OUTPUTS)
    except Problem as caught:
        problem = caught
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert problem is None or (problem.faults and len(problem.detail) < 1000)
    assert peak < 200 * len(body) + 200_000


@given(DOCUMENTS, st.binary(max_size=64), st.booleans())
@settings(deadline=None, max_examples=400)
def test_any_json_is_read_or_refused(document, binary, says_length):
    head = json.dumps(document).encode()
    parse_any(head + binary, str(len(head)) if says_length else None, (TOKENS, LENGTHS))


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_any_change_of_a_frame_is_read_or_refused(data):
    spec, raw, shape = data.draw(
        st.sampled_from(
            [
                (TOKENS, np.arange(4).tobytes(), [2, 2]),
                (FEATURES, np.arange(6, dtype="<f4").tobytes(), [1, 2, 3]),
                (TEXT, pack_texts(b"one", b"two"), [2]),
            ]
        )
    )
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": spec.name, "datatype": spec.datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
    assert parse_request(head + raw, str(len(head)), [spec], OUTPUTS).inputs
    body = bytearray(head + raw)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4) | st.just(b"9" * 18))
    length = data.draw(st.sampled_from([str(len(head)), str(len(body)), "0", "1"]))
    parse_any(bytes(body), length, [spec])


def test_texts_of_nothing_are_counted_before_they_are_read():
    count = 1_000_000
    parameters = {"binary_data_size": 4 * count}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [count], "parameters": parameters}
    with pytest.raises(Problem, match=rf"inputs\[0\].shape: expected at most {MAX_ENTRIES}"):
        parse({"inputs": [tensor]}, bytes(4 * count), (TEXT,))
