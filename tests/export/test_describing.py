"""The graphs of statistics that are run are those that this code writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import GraphProto, TensorProto, shape_inference

from attnserve.describing import statistics_file
from attnserve.export.describing import make_graph, write_graphs
from attnserve.export.graph import inline_bodies
from attnserve.export.weights import WEIGHTS
from attnserve.sessions import list_ops, open_session

FLOAT, BOOL = frozenset({TensorProto.FLOAT}), frozenset({TensorProto.BOOL})
NUMBERS = FLOAT | {TensorProto.INT64}
# Of what bodies use, the types of the first value that ONNX Runtime's CUDA provider has kernels for, as far as they are
# of use: docs/OperatorKernels.md of microsoft/onnxruntime at 001d12d, "Operators implemented by CUDAExecutionProvider".
CUDA_TYPES = {
    **dict.fromkeys(("Clip", "Div", "Log", "MatMul", "Neg", "Softmax", "Tanh"), FLOAT),
    **dict.fromkeys(("Abs", "Add", "Equal", "Greater", "GreaterOrEqual", "LessOrEqual", "Max", "Mul"), NUMBERS),
    **dict.fromkeys(("Range", "ReduceSum", "Sub", "Where"), NUMBERS),
    **dict.fromkeys(("Cast", "Concat", "Gather", "Reshape", "Shape"), NUMBERS | BOOL),
    **dict.fromkeys(("Slice", "Squeeze", "Transpose", "Unsqueeze"), NUMBERS | BOOL),
    **dict.fromkeys(("And", "If"), BOOL),
}
CUDA_OPS = CUDA_TYPES.keys()


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_files_are_up_to_date(weighting: str, tmp_path: Path) -> None:
    write_graphs(tmp_path)
    written = (tmp_path / statistics_file(weighting).name).read_bytes()
    assert written == statistics_file(weighting).read_bytes(), "python -m attnserve.export.describing attnserve"


def list_types(graph: GraphProto, around: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Every op of a graph and what is in it, with the type of its first value."""
    named = {**around, **{entry.name: entry.data_type for entry in graph.initializer}}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        named[entry.name] = entry.type.tensor_type.elem_type
    for node in graph.node:
        # A constant is made before anything runs, and so is its type.
        if node.op_type not in ("Constant", "CastLike"):
            yield node.op_type, named[node.input[1 if node.op_type == "Where" else 0]]
        for attribute in node.attribute:
            yield from list_types(attribute.g, named)


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_a_gpu_has_kernels_for_its_types(weighting: str) -> None:
    graph = shape_inference.infer_shapes(inline_bodies(make_graph(weighting)), strict_mode=True).graph
    found = set(list_types(graph, {}))
    assert len(found) > 30
    assert [one for one in found if one[1] not in CUDA_TYPES[one[0]]] == []


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_a_gpu_has_kernels_for_all_of_the_body(weighting: str) -> None:
    assert list_ops(open_session(statistics_file(weighting), "cpu", 1)) <= CUDA_OPS


def test_there_are_no_others() -> None:
    folder = statistics_file("softmax").parent
    assert set(folder.glob("*.onnx")) == {statistics_file(weighting) for weighting in WEIGHTS}
