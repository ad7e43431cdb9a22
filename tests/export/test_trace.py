"""One graph for all sizes: T rows, B sequences, N steps, R answers, C captures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from attnserve.bundle import LOGITS, MODEL_FILE, OP_DOMAIN, Tensor
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export

DTYPES = {"int64": np.dtype(np.int64), "float32": np.dtype(np.float32)}
ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}


INPUTS = {
    "tokens": ("T",),
    "positions": ("T",),
    "slots": ("B", "N"),
    "rows": ("R",),
    "head_scale": ("3", "2"),
    "capture": ("C",),
}
# Sizes of what is not the same in all kinds: inputs and logits, heads, key heads and channels.
SHAPES: dict[str, tuple[dict[str, tuple[str, ...]], tuple[str, str], list[str]]] = {
    "tiny": (INPUTS, ("R", "20"), ["2", "2", "8"]),
    "int8": (INPUTS, ("R", "20"), ["2", "2", "8"]),
    "mean": (
        {"features": ("T", "5")} | {name: INPUTS[name] for name in ("positions", "slots", "head_scale", "capture")},
        ("B", "4"),
        ["2", "2", "8"],
    ),
    "leading row": (
        {"features": ("T", "5")} | {name: INPUTS[name] for name in list(INPUTS)[1:]} | {"head_scale": ("3", "4")},
        ("R", "4"),
        ["4", "2", "8"],
    ),
}


@pytest.fixture(scope="module")
def runtime(exported: Any) -> Runtime:
    return exported.runtime


def sizes_of(entry: Tensor, bound: dict[str, int]) -> tuple[int, ...]:
    return tuple(bound[size] if size in bound else int(size) for size in entry.shape)


@pytest.mark.parametrize(
    ("lengths", "rows", "capture"),
    [
        ((1,), [0], [0]),
        ((1,), [], []),
        ((1,), [0, 0, 0], [0, 0]),
        ((2,), [1], []),
        ((1, 1), [0, 1], [1, 0]),
        ((1,) * 9, [8], [4]),
        ((7, 4, 5), [6, 10, 15], []),
        ((16,), [15], [0, 15, 15, 15, 7]),
        ((3, 1), [], [3, 3]),
        ((70,), [69, 0], list(range(70))),
        ((320,), [319, 0], list(range(320))),
        ((1, 320, 2), [0, 320, 322], [320]),
        ((5, 5, 5, 5), list(range(20)), list(range(20))),
    ],
    ids=lambda value: "x".join(map(str, value[:4])) or "none",
)
def test_any_size_runs_and_is_right(
    exported: Any,
    ask_torch: Callable[..., Any],
    lengths: tuple[int, ...],
    rows: list[int],
    capture: list[int],
) -> None:
    runtime, longest = exported.runtime, exported.interface.max_length
    packed = exported.pack([min(length, longest) for length in lengths])
    rows, capture = ([min(row, len(packed.inputs) - 1) for row in chosen] for chosen in (rows, capture))
    names = [entry.name for entry in runtime.manifest.outputs]
    answer = runtime.run(packed, np.array(rows, np.int64), names, capture=np.array(capture, np.int64))
    num_rows, (num_sequences, num_steps) = len(packed.inputs), packed.slots.shape
    bound = {"T": num_rows, "B": num_sequences, "N": num_steps, "R": len(rows), "C": len(capture)}
    for entry in runtime.manifest.outputs:
        assert answer[entry.name].shape == sizes_of(entry, bound), entry.name
        assert answer[entry.name].dtype == DTYPES[entry.dtype], entry.name
    truth = ask_torch(exported.model, packed).logits
    expected = truth[rows] if exported.interface.has_rows else truth
    np.testing.assert_allclose(answer[LOGITS], expected, rtol=0, atol=5e-5 * np.abs(truth).max())


def test_the_manifest_lists_what_the_graph_has(runtime: Runtime) -> None:
    session, manifest = runtime.session, runtime.manifest
    # An input with an initialiser is listed apart by ONNX Runtime; in the file it is the last but one.
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    assert sorted(entry.name for entry in inputs) == sorted(entry.name for entry in manifest.inputs)
    assert [entry.name for entry in session.get_outputs()] == [entry.name for entry in manifest.outputs]
    described = {entry.name: entry for entry in (*manifest.inputs, *manifest.outputs)}
    for found in (*inputs, *session.get_outputs()):
        assert ORT_TYPES[described[found.name].dtype] == found.type
        assert tuple(map(str, found.shape)) == described[found.name].shape, found.name


def test_names_orders_and_letters_are_those_of_format_version_1(
    runtime: Runtime, request: pytest.FixtureRequest
) -> None:
    inputs, logits, (heads, key_heads, channels) = SHAPES[request.node.callspec.params["exported"]]
    assert {entry.name: entry.shape for entry in runtime.manifest.inputs} == inputs
    shapes = {entry.name: entry.shape for entry in runtime.manifest.outputs}
    assert next(iter(shapes)) == "logits"
    assert shapes["logits"] == logits
    assert shapes["layers.2.query"] == ("C", heads, channels)
    assert shapes["layers.2.key"] == shapes["layers.2.metric"] == ("C", key_heads, channels)
    assert shapes["layers.0.hidden"] == ("C", "16")
    assert shapes["layers.0.value_norm"] == ("C", heads)
    assert len(shapes) == 1 + 3 * 4 + 1


def test_a_traced_graph_holds_nodes_and_no_bodies(small_graph: onnx.ModelProto) -> None:
    (node,) = (node for node in small_graph.graph.node if node.domain == OP_DOMAIN)
    assert node.op_type == "ExpressiveAttention"
    assert {attribute.name for attribute in node.attribute} == {"causal", "scale", "epsilon", "window", "softcap"}
    assert [entry.name for entry in small_graph.graph.output] == ["logits", "layers.0.hidden"]
    assert not [function for function in small_graph.functions if function.domain == OP_DOMAIN]


def test_sizes_of_the_example_are_not_in_the_file(runtime: Runtime) -> None:
    # Had the tracer taken T = 16 or N = 7 for a constant, value shapes would say so.
    graph = onnx.load(runtime.folder / MODEL_FILE).graph
    dynamic = {entry.name: entry.type.tensor_type.shape.dim for entry in (*graph.input, *graph.output)}
    for name, sizes in dynamic.items():
        assert name == "head_scale" or sizes[0].dim_param in ("T", "B", "R", "C"), name
