"""Every node of what is exported can run on a GPU, as far as that can be told without one."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from attnserve.bundle import MODEL_FILE
from attnserve.describing import PACKAGE
from tests.export.cuda_copies import list_copies, read_as_placed
from tests.export.cuda_kernels import list_missing

pytestmark = pytest.mark.export


def test_committed_bundles(committed_bundles: Path) -> None:
    paths = sorted(committed_bundles.glob("*/1/**/*.onnx"))
    assert len(paths) > 5
    assert {path.relative_to(committed_bundles).as_posix(): list_missing(path) for path in paths} == {
        path.relative_to(committed_bundles).as_posix(): [] for path in paths
    }


def test_graphs_that_come_with_the_package() -> None:
    paths = sorted(PACKAGE.glob("*.onnx"))
    assert paths
    for path in paths:
        assert list_missing(path) == [], path


def test_graphs_of_all_kinds(breadth: Path) -> None:
    for path in sorted(breadth.glob("*/1/*.onnx")):
        assert list_missing(path) == [], path


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_graphs_of_other_precisions(export_tiny, precision: str) -> None:
    assert list_missing(export_tiny(precision=precision) / MODEL_FILE) == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["N"]) for name in "xy"]
    nodes = [
        helper.make_node("Log", ["x"], ["z"]),
        helper.make_node("Det", ["z"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "graph", values[:1], values[1:]))
    onnx.save(model, tmp_path / "graph.onnx")
    assert list_missing(tmp_path / "graph.onnx") == ["Det of TensorProto.BFLOAT16", "Log of TensorProto.BFLOAT16"]


def test_nothing_is_left_that_a_cuda_graph_could_not_record(committed_bundles: Path, tmp_path: Path) -> None:
    for place in sorted(committed_bundles.glob("*/1")):
        graph = read_as_placed(place / MODEL_FILE, tmp_path)
        ops = {node.op_type for node in graph.node}
        assert "MatMul" in ops or "Gemm" in ops
        assert not ops & {"If", "Loop", "Scan"}, place
        assert list_copies(graph) == [], place


def test_nothing_is_copied_in_graphs_of_all_kinds(breadth: Path, tmp_path: Path) -> None:
    for place in sorted(breadth.glob("*/1")):
        assert list_copies(read_as_placed(place / MODEL_FILE, tmp_path)) == [], place


def test_what_is_copied_is_named(tmp_path: Path) -> None:
    # What bodies did once: which slots there are was asked of sizes and an input alone.
    slots = helper.make_tensor_value_info("slots", TensorProto.INT64, ["B", "N"])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["T"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", "N"])
    nodes = [
        helper.make_node("Shape", ["rows"], ["size"]),
        helper.make_node("Less", ["slots", "size"], ["exists"]),
        helper.make_node("Gather", ["rows", "slots"], ["gathered"]),
        helper.make_node("Where", ["exists", "gathered", "zero"], ["output"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [slots, rows], [output], [zero]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "graph.onnx")
    assert list_copies(read_as_placed(tmp_path / "graph.onnx", tmp_path)) == ["exists", "slots"]
