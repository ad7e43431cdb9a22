"""The coding graphs: weights in fewer bits, and what a row loses by it; and back from half of them.

They are no part of a bundle: `python -m attnserve.export.coding service/formats` writes them beside the code that runs
them, and a test compares. In ONNX Runtime, because numpy takes twenty times as long for a cast to float16, and eight
times as long for one from it.

    float16.onnx     weights [R, K] -> coded [R, K] float16, row_error
    uint8_sqrt.onnx  weights [R, K] -> coded [R, K] uint8, scale [R], row_error: a weight is scale (coded / 255)^2
    float32.onnx     numbers [R, K] float16 -> widened [R, K]

`row_error` is half the sum of a row's absolute differences, of the row that loses most: of rows that sum to 1, the
part that went elsewhere.
"""

import sys
from pathlib import Path

import onnx
from onnxscript import FLOAT, FLOAT16, UINT8, OnnxFunction, script

from attnserve.export.bodies.domain import op
from attnserve.export.canonical import canonicalise


@script(default_opset=op)
def float16(weights: FLOAT["R", "K"]) -> tuple[FLOAT16["R", "K"], FLOAT]:
    """A cast."""
    coded = op.Cast(weights, to=onnx.TensorProto.FLOAT16)
    difference = op.Abs(op.Cast(coded, to=onnx.TensorProto.FLOAT) - weights)
    row_error = 0.5 * op.ReduceMax(op.ReduceSum(difference, [1], keepdims=0), keepdims=0)
    return coded, row_error


@script(default_opset=op)
def uint8_sqrt(weights: FLOAT["R", "K"]) -> tuple[UINT8["R", "K"], FLOAT["R"], FLOAT]:
    """Square roots in 255 steps of each row's largest: small weights keep what linear steps would round to 0."""
    largest = op.ReduceMax(weights, [1], keepdims=1)
    # A row of zeros stays one.
    divisor = op.Where(largest > 0.0, largest, 1.0)
    steps = op.Round(op.Sqrt(weights / divisor) * 255.0)
    coded = op.Cast(steps, to=onnx.TensorProto.UINT8)
    part = steps / 255.0
    difference = op.Abs(part * part * largest - weights)
    row_error = 0.5 * op.ReduceMax(op.ReduceSum(difference, [1], keepdims=0), keepdims=0)
    scale = op.Squeeze(largest, [1])
    return coded, scale, row_error


@script(default_opset=op)
def float32(numbers: FLOAT16["R", "K"]) -> FLOAT["R", "K"]:
    """A cast."""
    widened = op.Cast(numbers, to=onnx.TensorProto.FLOAT)
    return widened


CODINGS: dict[str, OnnxFunction] = {"float16": float16, "uint8_sqrt": uint8_sqrt, "float32": float32}


def write_codings(folder: Path) -> None:
    """Write a file for each coding."""
    for name, function in CODINGS.items():
        (folder / f"{name}.onnx").write_bytes(canonicalise(function.to_model_proto()).SerializeToString())


if __name__ == "__main__":
    write_codings(Path(sys.argv[1]))
