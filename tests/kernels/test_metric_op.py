"""Whatever an EllipticalMetric node is given, it answers or says what is wrong. More on slots: test_attention_op.py."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.conformance.implementations import one_node_model, open_in_onnx_runtime
from tests.kernels.library import build_library

OP = "EllipticalMetric"


def run(shapes: list[tuple[int, ...]], slots: object) -> NDArray[np.float32]:
    model = one_node_model(OP, {"prefix": 1, "mean": 0}, onnx.TensorProto.FLOAT)
    # Of any rank: what is fed is judged by the kernel, not by ONNX Runtime.
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.ClearField("shape")
    value, previous = (np.full(shape, number, np.float32) for number, shape in enumerate(shapes))
    feeds = {"value": value, "previous_value": previous, "slots": np.array(slots, np.int64)}
    return open_in_onnx_runtime(model, build_library())(feeds)[0]


@pytest.mark.parametrize(
    ("shapes", "slots", "message"),
    [
        ([(4, 2, 3), (4, 2, 2)], [[0, 1]], r"previous_value: expected \[4, 2, 3\], got \[4, 2, 2\]"),
        ([(4, 2, 3), (5, 2, 3)], [[0, 1]], r"previous_value: expected \[4, 2, 3\], got \[5, 2, 3\]"),
        ([(4, 6), (4, 6)], [[0, 1]], r"value: expected 3 dimensions, got \[4, 6\]"),
        ([(4, 2, 3), (4, 2, 3)], [[0, 7]], r"slots\[0, 1\]: expected a row from 0 to 4, got 7"),
        ([(4, 2, 3), (4, 2, 3)], [[0, 1], [1, 2]], r"slots\[1, 0\]: expected a row of no other sequence, got 1"),
        ([(4, 2, 3), (4, 2, 3)], [0, 1], r"slots: expected 2 dimensions, got \[2\]"),
    ],
)
def test_what_does_not_belong_together(shapes: list[tuple[int, ...]], slots: object, message: str) -> None:
    with pytest.raises(Exception, match=f"{OP}: {message}"):
        run(shapes, slots)


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_nothing_to_measure_is_nothing(shape: tuple[int, ...]) -> None:
    assert run([shape, shape], np.arange(shape[0])[None]).shape == shape


def test_rows_of_no_sequence_are_zero() -> None:
    output = run([(4, 2, 3), (4, 2, 3)], [[1, 2]])
    assert (output[[1, 2]] == 1).all()
    assert (output[[0, 3]] == 0).all()
