"""Golden is the truth about seeded sequences, and its replay notices what may go wrong."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import attnserve.golden
from attnserve.certificate import Certificate
from attnserve.export.golden import MAX_MAPS, MAX_RELATIVE_LOGITS, allow, make_sequences, record_golden
from attnserve.export.subject import Subject
from attnserve.golden import Golden, read_golden, replay
from attnserve.interface import Interface
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.checkpoint import CheckpointError
from attnserve.packing import Packed, add_leading_row, pack
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export

Change = Callable[[onnx.ModelProto], None]
Record = Callable[..., tuple[Golden, Certificate]]
# One unit in the last place of 1.
LAST_PLACES = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(scope="module")
def record(make_subject: Callable[..., Subject]) -> Record:
    """`record(model, precision, ...)`: golden and certificate of a `Transformer`."""

    def record(model: Transformer, precision: str = "float32", **options: Any) -> tuple[Golden, Certificate]:
        return record_golden(copy.deepcopy(model).eval().double(), make_subject(model, precision), **options)

    return record


@pytest.fixture(scope="module")
def golden(record: Record, small_model: Transformer) -> Golden:
    return record(small_model)[0]


def test_sequences_of_every_length_alone_and_together(golden: Golden) -> None:
    assert golden.lengths.tolist() == [1, 2, 3, 5, 8, *[12] * 9]
    assert [batch.tolist() for batch in golden.batches] == [
        *([index] for index in range(14)),
        [*range(14)],
        [*reversed(range(14)), 0],
    ]


def test_it_is_the_same_every_time_and_another_with_another_seed(
    record: Record, small_model: Transformer, golden: Golden
) -> None:
    again, other = record(small_model)[0], record(small_model, seed=1)[0]
    assert all(np.array_equal(vars(again)[name], array) for name, array in vars(golden).items())
    assert not np.array_equal(other.inputs, golden.inputs)


def test_it_holds_what_pytorch_says_in_float64(
    small_model: Transformer, golden: Golden, ask_torch: Callable[..., Any]
) -> None:
    truth = np.concatenate([ask_torch(small_model, pack([sequence])).logits for sequence in golden.sequences])
    np.testing.assert_array_equal(golden.logits, truth[golden.logit_rows])


def test_maps_are_rows_of_weights(golden: Golden) -> None:
    np.testing.assert_allclose(golden.maps.sum(-1), 1, rtol=1e-12)
    step = np.concatenate([np.arange(length) for length in golden.lengths])[golden.map_rows]
    future = np.arange(golden.maps.shape[-1]) > step[:, None]
    assert (golden.maps[np.broadcast_to(future[:, None, None], golden.maps.shape)] == 0).all()
    # Of long sequences a few rows, first and last among them.
    ends = np.cumsum(golden.lengths)
    assert {*(ends - 1), *(ends - golden.lengths)} <= set(golden.map_rows.tolist())


def test_recording_leaves_the_model_and_torch_as_they_were(
    small_model: Transformer, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(small_model)
    model = subject.module
    functions = [layer.attention.attention.attend for layer in model.layers]
    threads = torch.get_num_threads()
    record_golden(copy.deepcopy(small_model).double(), subject)
    assert all(layer.attention.attention.attend is one for layer, one in zip(model.layers, functions, strict=True))
    assert torch.get_num_threads() == threads
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("max_length", "lengths"),
    [
        (1, [1] * 9),
        (2, [1, *[2] * 9]),
        (4, [1, 2, 3, *[4] * 9]),
        (40, [1, 2, 3, 5, 8, 17, 33, *[40] * 5]),
        (129, [1, 2, 3, 5, 8, 17, 33, 64, 128, 129]),
    ],
)
def test_lengths_end_at_what_the_model_can(record: Record, max_length: int, lengths: list[int]) -> None:
    config = TransformerConfig(
        vocabulary_size=1, max_length=max_length, width=2, num_heads=1, attention=(AttentionConfig(),)
    )
    recorded, certificate = record(Transformer(config))
    assert recorded.lengths.tolist() == lengths
    assert certificate.maps.allowed > 0


def test_a_long_model_is_recorded_at_small_lengths(record: Record) -> None:
    # Its longest maps would be gigabytes.
    config = TransformerConfig(
        vocabulary_size=3, max_length=4096, width=4, num_heads=2, positions="rotary", attention=(AttentionConfig(),)
    )
    assert record(Transformer(config))[0].lengths.max() == 128


def test_a_model_that_overflows_is_refused(record: Record, small_model: Transformer) -> None:
    model = copy.deepcopy(small_model)
    with torch.no_grad():
        model.unembedding.weight.copy_(3e38 * model.unembedding.weight.sign())
    with pytest.raises(CheckpointError, match="not finite in float32"):
        record(model)


def test_a_model_without_an_answer_is_not_blamed_for_its_batches(record: Record, small_model: Transformer) -> None:
    model = copy.deepcopy(small_model)
    with torch.no_grad():
        model.token_embedding.weight[2] = torch.nan
    with pytest.raises(CheckpointError, match="not finite in float32"):
        record(model)


@pytest.mark.parametrize(
    ("precision", "reference", "largest", "allowed"),
    [
        # Four times PyTorch's own error,
        ("float32", 1e-5, 10.0, 4e-5),
        # never above a share of the largest number,
        ("float32", 1e-3, 10.0, 10.0 * 5e-5),
        # and an error that is 0 or less than one unit in the last place by luck counts as one.
        ("float32", 0.0, 10.0, 40 * LAST_PLACES["float32"]),
        ("float32", 1e-9, 10.0, 40 * LAST_PLACES["float32"]),
        # Numbers that are all exactly 0 are not hard to get right.
        ("float32", 0.0, 0.0, 0.0),
        # int8 weights compute in float32.
        ("int8", 1e-3, 10.0, 10.0 * 5e-5),
        ("int8", 0.0, 10.0, 40 * LAST_PLACES["float32"]),
        # Three times in half precision, however much that is.
        ("float16", 0.5, 10.0, 1.5),
        ("bfloat16", 4.0, 10.0, 12.0),
        ("float16", 0.0, 10.0, 30 * LAST_PLACES["float16"]),
        ("bfloat16", 1e-9, 10.0, 30 * LAST_PLACES["bfloat16"]),
        ("float16", 0.0, 0.0, 0.0),
    ],
)
def test_what_a_certificate_allows(precision: str, reference: float, largest: float, allowed: float) -> None:
    max_relative = MAX_RELATIVE_LOGITS.get(precision)
    deviation = allow(reference, largest=largest, max_relative=max_relative, precision=precision)
    assert deviation.allowed == pytest.approx(allowed)
    assert deviation.reference == reference


@pytest.mark.parametrize("precision", LAST_PLACES)
def test_the_certificate_is_pytorchs_own_error(
    record: Record, small_model: Transformer, golden: Golden, ask_torch: Callable[..., Any], precision: str
) -> None:
    recorded, certificate = record(small_model, precision)
    # The truth is float64's, whatever is exported.
    assert np.array_equal(recorded.logits, golden.logits)
    model = copy.deepcopy(small_model).to(getattr(torch, precision))
    errors = []
    for batch in golden.batches:
        sequences = [golden.sequences[index] for index in batch]
        with torch.no_grad():
            own = torch.cat(model.predict(sequences)).double().numpy()
        truth = np.concatenate([ask_torch(small_model, pack([sequence])).logits for sequence in sequences])
        errors.append(np.abs(own - truth).max())
    # Another number of threads may add in another order.
    assert certificate.logits.reference == pytest.approx(max(errors), rel=0.5)
    if precision == "float32":
        assert certificate.logits.allowed <= 5e-5 * np.abs(golden.logits).max()
        assert certificate.maps.allowed <= MAX_MAPS[precision] == 1e-4
    else:
        assert certificate.logits.allowed == pytest.approx(3 * certificate.logits.reference)
    assert certificate.precision == precision
    assert certificate.logits.measured is None


def test_rows_that_speak_for_a_sequence_are_those_recorded(exported: Any) -> None:
    golden, interface = read_golden(exported.runtime.folder), exported.interface
    assert replay(exported.runtime, golden).passed
    leading = int(interface.leading_row)
    assert golden.lengths[:4].tolist() == [length + leading for length in (1, 2, 3, 5)]
    starts = np.cumsum(golden.lengths) - golden.lengths
    if interface.task == "classify_sequence":
        assert golden.logit_rows.tolist() == starts.tolist()
    else:
        assert len(golden.logit_rows) == len(golden.inputs)
    if leading:
        assert (golden.inputs[starts] == 0).all()
        assert (golden.inputs[1] != 0).all()


@pytest.mark.parametrize("array", ["inputs", "logits"])
def test_other_features_or_answers_are_noticed(exported: Any, array: str) -> None:
    golden = read_golden(exported.runtime.folder)
    swapped = getattr(golden, array).copy()
    first, second = golden.logit_rows[1:3] if array == "inputs" else (1, 2)
    swapped[[first + 1, second + 1]] = swapped[[second + 1, first + 1]]
    assert not np.array_equal(swapped, getattr(golden, array))
    assert not replay(exported.runtime, dataclasses.replace(golden, **{array: swapped})).passed


def test_the_example_is_one_of_the_sequences_and_sets_the_size_of_the_others() -> None:
    interface = Interface(task="classify_token", max_length=33, num_features=2, num_classes=3)
    example = np.float32([[1000.0, 1010.0], [990.0, 1000.0]])
    *others, last = make_sequences(interface, np.random.default_rng(0), example)
    assert last is example
    assert [len(one) for one in others] == [1, 2, 3, 5, 8, 17, *[33] * 7]
    numbers = np.concatenate(others)
    assert numbers.mean() == pytest.approx(1000, abs=3)
    assert numbers.std() == pytest.approx(example.std(), rel=0.3)


@pytest.mark.parametrize("sent", [[[7.0, 9.0]], [[8.0, 8.0]]], ids=["spread", "constant"])
def test_a_leading_row_says_nothing_about_the_size_of_features(sent: list[list[float]]) -> None:
    told = {"task": "classify_sequence", "pooling": "first", "max_length": 33, "num_features": 2, "num_classes": 3}
    example = add_leading_row(np.float32(sent))
    *others, last = make_sequences(Interface(leading_row=True, **told), np.random.default_rng(0), example)
    assert last is example
    assert all((one[0] == 0).all() for one in others)
    numbers = np.concatenate([one[1:] for one in others])
    assert numbers.mean() == pytest.approx(8, abs=0.3)
    assert numbers.std() == pytest.approx(1, rel=0.2)


def attention_of(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if node.op_type == "ExpressiveAttention")
    return node


def set_attribute(name: str, value: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (attribute,) = (entry for entry in attention_of(model).attribute if entry.name == name)
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return change


def rewrite(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (entry for entry in model.graph.initializer if entry.name == name)
        array = np.ascontiguousarray(edit(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def with_nan(array: np.ndarray) -> np.ndarray:
    array[2] = np.nan
    return array


def swap_heads(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 4, axis=0)


def swap_key_and_query(model: onnx.ModelProto) -> None:
    # Symmetric in the scores of a step with itself, and in nothing else.
    inputs = attention_of(model).input
    inputs[0], inputs[1] = inputs[1], inputs[0]


FAULTS: dict[str, Change] = {
    "scale": set_attribute("scale", 0.36),
    "epsilon": set_attribute("epsilon", 0.01),
    "leaked future": set_attribute("causal", 0),
    "window": set_attribute("window", 11),
    "softcap": set_attribute("softcap", 5.0),
    "swapped heads of the query": rewrite("module.layers.0.attention.query.weight", swap_heads),
    "swapped heads of the value": rewrite("module.layers.0.attention.value.weight", swap_heads),
    "query for key": swap_key_and_query,
    "NaN for one token": rewrite("module.token_embedding.weight", with_nan),
    "one weight rounded to float16": rewrite(
        "module.layers.0.mlp.up.weight", lambda array: array.astype(np.float16).astype(np.float32)
    ),
}


def test_an_honest_bundle_passes(small_bundle: Path) -> None:
    assert replay(Runtime(small_bundle, num_threads=1), read_golden(small_bundle)).passed


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_a_wrong_graph_is_noticed(changed_bundle: Callable[[Change], Path], change: Change) -> None:
    folder = changed_bundle(change)
    report = replay(Runtime(folder, num_threads=1), read_golden(folder))
    assert not report.passed
    assert "OUTSIDE THE CERTIFICATE" in report.table()


def test_sequences_that_see_each_other_are_noticed(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack_as_one(sequences: list[Any]) -> Packed:
        packed, whole = pack(sequences), pack([np.concatenate(sequences)])
        return Packed(inputs=packed.inputs, positions=packed.positions, slots=whole.slots, lengths=packed.lengths)

    # `starts` reads slots, so it has to be told where sequences begin.
    starts = property(lambda packed: [0, *np.cumsum(packed.lengths)[:-1].tolist()])
    monkeypatch.setattr(Packed, "starts", starts)
    monkeypatch.setattr(attnserve.golden, "pack", pack_as_one)
    report = replay(Runtime(small_bundle, num_threads=1), read_golden(small_bundle))
    assert [batch.num_sequences == 1 for batch in report.batches] == [
        batch.logits <= report.certificate.logits.allowed for batch in report.batches
    ]
