"""The graphs of AttentionStatistics: one node each, with its function body for where there is no kernel.

They are no part of a bundle: `python -m attnserve.export.describing attnserve` writes them beside the code that runs
them, and a test compares. docs/kernels.md says what goes in and out.
"""

import sys
from pathlib import Path

import onnx
from onnx import helper

from attnserve.bundle import OP_DOMAIN, OP_VERSION
from attnserve.describing import RECEIVED, ROW_SUMS, STATISTICS_OP, statistics_file
from attnserve.export.attach import strip_metadata
from attnserve.export.bodies.domain import OPSET
from attnserve.export.bodies.statistics import CALLED, STATISTICS
from attnserve.export.weights import PARTS

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
OUTPUTS = {**dict.fromkeys(ROW_SUMS, ROWS), RECEIVED: KEYS}


def make_graph(weighting: str) -> onnx.ModelProto:
    """The op with a weighting as its attribute, and the body of that weighting."""
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in INPUTS.items()]
    outputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in OUTPUTS.items()]
    node = helper.make_node(STATISTICS_OP, list(INPUTS), list(OUTPUTS), domain=OP_DOMAIN, weighting=weighting)
    model = helper.make_model(
        helper.make_graph([node], STATISTICS_OP, inputs, outputs),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(OP_DOMAIN, OP_VERSION),
            helper.make_opsetid(PARTS.domain, PARTS.version),
        ],
        ir_version=IR_VERSION,
        functions=[*(part.to_function_proto() for part in CALLED[weighting]), make_body(weighting)],
    )
    strip_metadata(model)
    return model


def make_body(weighting: str) -> onnx.FunctionProto:
    """The op's function in the file of a weighting, whose name is an attribute that only kernels read."""
    body: onnx.FunctionProto = STATISTICS[weighting].to_function_proto()
    body.domain, body.name = OP_DOMAIN, STATISTICS_OP
    body.attribute.append("weighting")
    return body


def write_graphs(folder: Path) -> None:
    """Write a file for each weighting."""
    for weighting in STATISTICS:
        (folder / statistics_file(weighting).name).write_bytes(make_graph(weighting).SerializeToString())


if __name__ == "__main__":
    write_graphs(Path(sys.argv[1]))
