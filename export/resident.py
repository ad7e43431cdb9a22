"""The graphs that read captures on the device they stay on (`attnserve/resident.py`), one of each for every type.

    lay_out.<type>.onnx  values [C, H, E], rows [Q], heads [G] -> by_head [G, Q, E] in float32
    finite.<type>.onnx   values [C, ...], rows [Q] -> is_finite: whether every number of these rows is
    units.<type>.onnx    values [C, D], rows [Q] -> total [D] of the rows at length 1, and num_rows that have a length

They are no part of a bundle: `python -m attnserve.export.resident attnserve` writes them beside the code that runs
them, and a test compares. Every node has a kernel in ONNX Runtime's CUDA provider.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from attnserve.export.bodies.domain import OPSET
from attnserve.resident import DTYPES, FINITE, LAY_OUT, UNITS, capture_file

# That of the bodies' opset.
IR_VERSION = 9
FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
TYPES = {"float32": FLOAT, "float16": onnx.TensorProto.FLOAT16}
NO_CONSTANTS: Mapping[str, NDArray[Any]] = {}


def make_lay_out(dtype: str) -> onnx.ModelProto:
    """Rows and heads are picked, laid out by head, and widened."""
    return _make_model(
        LAY_OUT,
        [
            helper.make_node("Gather", ["values", "rows"], ["picked"], axis=0),
            helper.make_node("Gather", ["picked", "heads"], ["of_heads"], axis=1),
            helper.make_node("Transpose", ["of_heads"], ["narrow"], perm=[1, 0, 2]),
            helper.make_node("Cast", ["narrow"], ["by_head"], to=FLOAT),
        ],
        [
            helper.make_tensor_value_info("values", TYPES[dtype], ["C", "H", "E"]),
            helper.make_tensor_value_info("rows", INT64, ["Q"]),
            helper.make_tensor_value_info("heads", INT64, ["G"]),
        ],
        helper.make_tensor_value_info("by_head", FLOAT, ["G", "Q", "E"]),
    )


def make_finite(dtype: str) -> onnx.ModelProto:
    """What is finite is 0 less itself, and anything else is no number, nor is a sum with it."""
    return _make_model(
        FINITE,
        [
            helper.make_node("Gather", ["values", "rows"], ["picked"], axis=0),
            helper.make_node("Sub", ["picked", "picked"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["total"], keepdims=0),
            helper.make_node("IsNaN", ["total"], ["is_none"]),
            helper.make_node("Not", ["is_none"], ["is_finite"]),
        ],
        [
            # Of any number of sizes, whatever onnx's checker says of that.
            helper.make_tensor_value_info("values", TYPES[dtype], None),
            helper.make_tensor_value_info("rows", INT64, ["Q"]),
        ],
        helper.make_tensor_value_info("is_finite", BOOL, []),
    )


def make_units(dtype: str) -> onnx.ModelProto:
    """Rows of zeros stay so, and are not counted. Divided by their largest number first: squares could overflow."""
    return _make_model(
        UNITS,
        [
            helper.make_node("Gather", ["values", "rows"], ["picked"], axis=0),
            helper.make_node("Cast", ["picked"], ["wide"], to=FLOAT),
            helper.make_node("Abs", ["wide"], ["sizes"]),
            helper.make_node("ReduceMax", ["sizes", "channel"], ["largest"], keepdims=1),
            helper.make_node("Greater", ["largest", "zero"], ["is_there"]),
            helper.make_node("Where", ["is_there", "largest", "one"], ["scales"]),
            helper.make_node("Div", ["wide", "scales"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "scaled"], ["squares"]),
            helper.make_node("ReduceSum", ["squares", "channel"], ["squared_norms"], keepdims=1),
            helper.make_node("Sqrt", ["squared_norms"], ["norms"]),
            helper.make_node("Where", ["is_there", "norms", "one"], ["divisors"]),
            helper.make_node("Div", ["scaled", "divisors"], ["units"]),
            helper.make_node("ReduceSum", ["units", "row"], ["total"], keepdims=0),
            helper.make_node("Cast", ["is_there"], ["counted"], to=INT64),
            helper.make_node("ReduceSum", ["counted"], ["num_rows"], keepdims=0),
        ],
        [
            helper.make_tensor_value_info("values", TYPES[dtype], ["C", "D"]),
            helper.make_tensor_value_info("rows", INT64, ["Q"]),
        ],
        helper.make_tensor_value_info("total", FLOAT, ["D"]),
        helper.make_tensor_value_info("num_rows", INT64, []),
        constants={
            "channel": np.array([1], np.int64),
            "row": np.array([0], np.int64),
            "zero": np.array(0, np.float32),
            "one": np.array(1, np.float32),
        },
    )


GRAPHS = {LAY_OUT: make_lay_out, FINITE: make_finite, UNITS: make_units}


def write_graphs(folder: Path) -> None:
    """Write a file for each graph and type."""
    for name, make in GRAPHS.items():
        for dtype in DTYPES:
            (folder / capture_file(name, dtype).name).write_bytes(make(dtype).SerializeToString())


def _make_model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    *outputs: onnx.ValueInfoProto,
    constants: Mapping[str, NDArray[Any]] = NO_CONSTANTS,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, constant) for constant, array in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


if __name__ == "__main__":
    write_graphs(Path(sys.argv[1]))
