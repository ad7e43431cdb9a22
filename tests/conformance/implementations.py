"""What runs ONNX graphs in these tests, and one-node models of the ops for it to run.

A one-node model is built from the bodies alone, without tracing: a grid of them costs milliseconds per case.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from attnserve.bundle import OP_DOMAIN, OP_VERSION
from attnserve.export.attach import attach_bodies
from attnserve.export.bodies import BODIES
from attnserve.export.bodies.domain import OPSET
from tests.kernels.library import TARGET_OPTION, TARGETS, build_library, has_target

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[Feeds], list[NDArray[Any]]]
IR_VERSION = 10


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to run a graph."""

    name: str
    open: Callable[[onnx.ModelProto], Run]
    tolerance: float
    """Largest absolute difference from float64 for float32 inputs and values of about 1."""


def open_in_onnx_runtime(
    model: onnx.ModelProto, library: Path | None = None, target: str = "", num_threads: int = 1
) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    if library is not None:
        options.add_session_config_entry(TARGET_OPTION, target)
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, dict(feeds))


def open_with_kernels(target: str) -> Callable[[onnx.ModelProto], Run]:
    """Opens models with the native kernels of an instruction set; skips where there are none."""

    def open_model(model: onnx.ModelProto) -> Run:
        library = build_library()
        if not has_target(library, target):
            pytest.skip(f"this processor has no {target}")
        return open_in_onnx_runtime(model, library, target)

    return open_model


def open_in_evaluator(model: onnx.ModelProto) -> Run:
    evaluator = ReferenceEvaluator(model)

    def run(feeds: Feeds) -> list[NDArray[Any]]:
        # Plain numpy: it warns of infinities that a select drops right afterwards.
        with np.errstate(all="ignore"):
            return evaluator.run(None, dict(feeds))

    return run


# Measured over the grid: 1.9e-6 for both.
IMPLEMENTATIONS = (
    Implementation(name="onnxruntime", open=open_in_onnx_runtime, tolerance=1e-5),
    Implementation(name="evaluator", open=open_in_evaluator, tolerance=1e-5),
)
# Of ops alone. Measured over the grid: 1.8e-6 with AVX-512 and AVX2, 2.0e-6 without.
KERNELS = tuple(Implementation(name=target, open=open_with_kernels(target), tolerance=1e-5) for target in TARGETS)


def run_op(implementation: Implementation, op: str, feeds: Feeds, attributes: Mapping[str, float]) -> NDArray[Any]:
    """Output of one op for rows [T, heads, channels] and `slots`, all floating inputs of one type."""
    (element_type,) = {helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items() if name != "slots"}
    (output,) = open_op(implementation, op, tuple(attributes.items()), element_type)(feeds)
    return output


@cache
def open_op(
    implementation: Implementation, op: str, attributes: tuple[tuple[str, float], ...], element_type: int
) -> Run:
    return implementation.open(one_node_model(op, dict(attributes), element_type))


def one_node_model(op: str, attributes: Mapping[str, float], element_type: int) -> onnx.ModelProto:
    """A model of one node and its function body, for any sizes."""
    names = list(BODIES[op].to_function_proto().input)
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [None] * 2)
        if name == "slots"
        else helper.make_tensor_value_info(name, element_type, [None] * 3)
        for name in names
    ]
    output = helper.make_tensor_value_info("output", element_type, [None] * 3)
    node = helper.make_node(op, names, ["output"], domain=OP_DOMAIN, **attributes)
    model = helper.make_model(
        helper.make_graph([node], op, inputs, [output]),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(OP_DOMAIN, OP_VERSION)],
        ir_version=IR_VERSION,
    )
    attach_bodies(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def as_type(feeds: Feeds, dtype: type[np.floating[Any]]) -> dict[str, NDArray[Any]]:
    """The feeds with every floating array as `dtype`."""
    return {name: array if array.dtype.kind == "i" else array.astype(dtype) for name, array in feeds.items()}
