"""The graphs of AttentionStatistics, of one node each, which nothing but native kernels can run.

They are no part of a bundle: `python -m attnserve.export.describing attnserve` writes them beside the code that runs
them, and a test compares. docs/kernels.md says what goes in and out.
"""

import sys
from pathlib import Path

import onnx
from onnx import helper

from attnserve.bundle import OP_DOMAIN, OP_VERSION
from attnserve.describing import statistics_file
from attnserve.export.bodies.domain import OPSET
from attnserve.export.weights import WEIGHTS

OP = "AttentionStatistics"
# That of the bodies' opset.
IR_VERSION = 9
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
ROWS, KEYS = ("H", "Q"), ("H", "N")
INPUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "query": (FLOAT, ("H", "Q", "E")),
    "key": (FLOAT, ("H", "N", "E")),
    "token": (INT64, ("N",)),
    "step": (INT64, ("Q",)),
    "first_key": (INT64, ("Q",)),
    "last_key": (INT64, ("Q",)),
    "scale": (FLOAT, ()),
    "softcap": (FLOAT, ()),
    "epsilon": (FLOAT, ()),
}
OUTPUTS = {
    **dict.fromkeys(("mass", "entropy", "distance", "sink", "previous", "self", "duplicate", "induction"), ROWS),
    "received": KEYS,
}


def make_graph(weighting: str) -> onnx.ModelProto:
    """The op with a weighting as its attribute."""
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in INPUTS.items()]
    outputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in OUTPUTS.items()]
    node = helper.make_node(OP, list(INPUTS), list(OUTPUTS), domain=OP_DOMAIN, weighting=weighting)
    return helper.make_model(
        helper.make_graph([node], OP, inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(OP_DOMAIN, OP_VERSION)],
        ir_version=IR_VERSION,
    )


def write_graphs(folder: Path) -> None:
    """Write a file for each weighting."""
    for weighting in WEIGHTS:
        (folder / statistics_file(weighting).name).write_bytes(make_graph(weighting).SerializeToString())


if __name__ == "__main__":
    write_graphs(Path(sys.argv[1]))
