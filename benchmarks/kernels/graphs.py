"""One-node models: our ops with their bodies, and the fused attention that ONNX Runtime brings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from attnserve.bundle import OP_DOMAIN, OP_VERSION
from attnserve.export.attach import attach_bodies
from attnserve.export.bodies.domain import OPSET
from attnserve.packing import pack

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an attention call is asked for."""

    lengths: tuple[int, ...]
    head_size: int
    causal: bool
    num_heads: int = 8

    @property
    def num_cells(self) -> int:
        """Scores of one head that are not masked."""
        return sum(n * (n + 1) // 2 if self.causal else n * n for n in self.lengths)

    @property
    def num_multiplications(self) -> int:
        """Multiply-adds of both products."""
        return 2 * self.num_heads * self.head_size * self.num_cells


class Call:
    """A model, and what it is fed and writes to: tensors that are there, since copies by Python are no op's time.

    Args:
        model: of one node, whose output is of the shape of its first input.
        feeds: its inputs.
        library: of kernels; None runs without.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], library: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        shape = next(iter(feeds.values())).shape
        self.output = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        self._binding.bind_ortvalue_output("output", self.output)

    def __call__(self) -> None:
        """Run, in this thread."""
        self._session.run_with_iobinding(self._binding)


def random_rows(shape: Shape) -> dict[str, NDArray[np.float32]]:
    """query, key, value [T, H, E] of standard normal numbers."""
    random = np.random.default_rng(0)
    size = (sum(shape.lengths), shape.num_heads, shape.head_size)
    return {name: random.standard_normal(size, np.float32) for name in ("query", "key", "value")}


def our_attention(op: str, shape: Shape, library: Path | None) -> Call:
    """`op` as a bundle has it; with a library its kernel runs, else the body."""
    attributes = {
        "causal": int(shape.causal),
        "scale": 1 / math.sqrt(shape.head_size),
        "epsilon": 0.0,
        "window": 0,
        "softcap": 0.0,
    }
    names = ["query", "key", "value", "slots"]
    inputs = [helper.make_tensor_value_info(name, FLOAT, [None] * 3) for name in names[:3]]
    inputs.append(helper.make_tensor_value_info("slots", INT64, [None] * 2))
    node = helper.make_node(op, names, ["output"], domain=OP_DOMAIN, **attributes)
    model = _model_of(node, inputs, 3, helper.make_opsetid("", OPSET), helper.make_opsetid(OP_DOMAIN, OP_VERSION))
    attach_bodies(model)
    slots = pack([np.zeros(length, np.int64) for length in shape.lengths]).slots
    return Call(model, {**random_rows(shape), "slots": slots}, library)


def fused_attention(shape: Shape) -> dict[str, Call]:
    """ONNX Runtime's own softmax attention over one sequence, each op with the layout it likes best."""
    (length,) = shape.lengths
    rows = random_rows(shape)
    scale = 1 / math.sqrt(shape.head_size)
    wide = [helper.make_tensor_value_info(name, FLOAT, [None] * 3) for name in rows]
    multi_head = helper.make_node(
        "MultiHeadAttention",
        list(rows),
        ["output"],
        domain="com.microsoft",
        num_heads=shape.num_heads,
        unidirectional=int(shape.causal),
        scale=scale,
    )
    by_head = [helper.make_tensor_value_info(name, FLOAT, [None] * 4) for name in rows]
    attention = helper.make_node("Attention", list(rows), ["output"], is_causal=int(shape.causal), scale=scale)
    microsoft = helper.make_opsetid("com.microsoft", 1)
    return {
        "MultiHeadAttention": Call(
            _model_of(multi_head, wide, 3, helper.make_opsetid("", OPSET), microsoft),
            {name: array.reshape(1, length, -1) for name, array in rows.items()},
        ),
        "Attention": Call(
            _model_of(attention, by_head, 4, helper.make_opsetid("", 23)),
            {name: np.ascontiguousarray(array.swapaxes(0, 1))[None] for name, array in rows.items()},
        ),
    }


def _model_of(node: Any, inputs: list[Any], rank: int, *opsets: Any) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("output", FLOAT, [None] * rank)
    graph = helper.make_graph([node], node.op_type, inputs, [output])
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=10)
