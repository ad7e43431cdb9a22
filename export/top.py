"""The top pass: outputs for the likeliest entries of every answer, so that nobody has to fetch all of its logits.

    top_ids, top_logits [R, K]   the K largest logits, falling; of equal ones the smaller id comes first
    normaliser [R]               sum over all W of exp(logit - largest logit); NaN where a logit is not finite

So an entry's probability is exp(logit - largest) / normaliser, right for logits of any size: next to a logit of 1e8 the
log of a sum of exponentials would vanish. What is added up is added in runs of about the square root of W: one float32
sum of 50257 was off by 2e-5, the sum of sums by 2e-7.
"""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from attnserve.bundle import LOGITS, NORMALISER, TOP_IDS, TOP_LOGITS


def add_top(model: onnx.ModelProto, top_k: int) -> None:
    """Add the three outputs to a graph, after its logits.

    Args:
        model: its output `logits` is float32 [R, W], or [B, W], with a W that is fixed.
        top_k: K, from 1 to W.
    """
    graph = model.graph
    place = [output.name for output in graph.output].index(LOGITS)
    answers, width = graph.output[place].type.tensor_type.shape.dim
    size = width.dim_value
    run = math.ceil(math.sqrt(size))
    in_runs = size // run * run
    constants: dict[str, NDArray[Any]] = {
        "top.k": np.array([top_k], np.int64),
        # One row more than asked for, cut off at the end: ONNX Runtime's TopK divides by the number of rows, and where
        # there are none (R = 0) that ends the process.
        "top.extra": np.zeros((1, size), np.float32),
        # Numbers times 0 are 0, and NaN where they are not finite; TopK and Exp may lose a NaN.
        "top.zero": np.zeros(1, np.float32),
        "top.runs": np.array([-1, in_runs // run, run], np.int64),
        "top.in_runs": np.array([in_runs], np.int64),
        "top.size": np.array([size], np.int64),
        "top.first": np.array([0], np.int64),
        "top.second": np.array([1], np.int64),
        "top.last": np.array([-1], np.int64),
    }
    for name, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Concat", [LOGITS, "top.extra"], ["top.rows"], {"axis": 0}),
        ("TopK", ["top.rows", "top.k"], ["top.values", "top.indices"], {"axis": 1}),
        ("Gather", ["top.values", "top.first"], ["top.largest"], {"axis": 1}),
        ("Sub", ["top.rows", "top.largest"], ["top.shifted"], {}),
        ("Exp", ["top.shifted"], ["top.exponentials"], {}),
        ("Slice", ["top.exponentials", "top.first", "top.in_runs", "top.second"], ["top.whole_runs"], {}),
        ("Reshape", ["top.whole_runs", "top.runs"], ["top.by_run"], {}),
        ("ReduceSum", ["top.by_run", "top.last"], ["top.sums"], {"keepdims": 0}),
        # What is left over goes with the sums.
        ("Slice", ["top.exponentials", "top.in_runs", "top.size", "top.second"], ["top.rest"], {}),
        ("Concat", ["top.sums", "top.rest"], ["top.summands"], {"axis": 1}),
        ("ReduceSum", ["top.summands", "top.last"], ["top.sum"], {}),
        ("Mul", ["top.rows", "top.zero"], ["top.zeros"], {}),
        ("ReduceSum", ["top.zeros", "top.last"], ["top.nothing"], {}),
        ("Add", ["top.sum", "top.nothing"], ["top.column"], {}),
        ("Squeeze", ["top.column", "top.last"], ["top.normalisers"], {}),
        ("Slice", ["top.indices", "top.first", "top.last", "top.first"], [TOP_IDS], {}),
        ("Slice", ["top.values", "top.first", "top.last", "top.first"], [TOP_LOGITS], {}),
        ("Slice", ["top.normalisers", "top.first", "top.last", "top.first"], [NORMALISER], {}),
    ]
    for op_type, inputs, outputs, attributes in steps:
        graph.node.append(helper.make_node(op_type, inputs, outputs, **attributes))
    added = [
        helper.make_tensor_value_info(TOP_IDS, TensorProto.INT64, [answers.dim_param, top_k]),
        helper.make_tensor_value_info(TOP_LOGITS, TensorProto.FLOAT, [answers.dim_param, top_k]),
        helper.make_tensor_value_info(NORMALISER, TensorProto.FLOAT, [answers.dim_param]),
    ]
    entries = [*graph.output[: place + 1], *added, *graph.output[place + 1 :]]
    del graph.output[:]
    graph.output.extend(entries)
