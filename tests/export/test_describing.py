"""The graphs of statistics that are run are those that this code writes."""

from pathlib import Path

import pytest

from attnserve.describing import statistics_file
from attnserve.export.describing import write_graphs
from attnserve.export.weights import WEIGHTS
from attnserve.sessions import list_ops, open_session

# Those that bodies need of what ONNX Runtime's CUDA provider has for float, int64 and bool, where they are of use there
# (docs/OperatorKernels.md of ONNX Runtime, "Operators implemented by CUDAExecutionProvider").
CUDA_OPS = {
    *("Abs", "Add", "And", "Cast", "Clip", "Concat", "Div", "Equal", "Gather", "Greater", "GreaterOrEqual", "If"),
    *("LessOrEqual", "Log", "MatMul", "Max", "Mul", "Range", "ReduceSum", "Reshape", "Shape", "Slice", "Softmax"),
    *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_files_are_up_to_date(weighting: str, tmp_path: Path) -> None:
    write_graphs(tmp_path)
    written = (tmp_path / statistics_file(weighting).name).read_bytes()
    assert written == statistics_file(weighting).read_bytes(), "python -m attnserve.export.describing attnserve"


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_a_gpu_has_kernels_for_all_of_the_body(weighting: str) -> None:
    assert list_ops(open_session(statistics_file(weighting), "cpu", 1)) <= CUDA_OPS


def test_there_are_no_others() -> None:
    folder = statistics_file("softmax").parent
    assert set(folder.glob("*.onnx")) == {statistics_file(weighting) for weighting in WEIGHTS}
