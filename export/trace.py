"""Tracing: the one `torch.onnx.export` call, with the graph's names and dynamic sizes."""

import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from attnserve.bundle import FEATURES, HEAD_SCALE, LOGITS, POSITIONS, ROWS, SLOTS, TOKENS, capture_name
from attnserve.export.bodies.domain import OPSET
from attnserve.export.lowering import lowered
from attnserve.export.subject import ModuleError, Subject
from attnserve.interface import Interface
from attnserve.models.attention.recording import recorded_outputs, scaled_heads
from attnserve.packing import Packed, pack

# Sizes that all differ: T = 16, B = 3, N = 7, R = 4. Equal ones would be traced as one.
EXAMPLE_LENGTHS = (7, 4, 5)


PREFIX = "module."
"""Before the name of each of the subject's parameters in the graph: where `_Graph` holds it."""

# It says at every export that torchvision is not installed.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


class _Graph(nn.Module):
    """The subject with its outputs as a flat tuple, in the order of `output_names`; features and logits are float32."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.module = subject.module
        self.blocks = [layer.block for layer in subject.layers]
        self.dtype = subject.dtype

    def forward(
        self, inputs: Tensor, positions: Tensor, slots: Tensor, head_scale: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        arguments = (inputs, positions, slots) if rows is None else (inputs, positions, slots, rows)
        with recorded_outputs(self.blocks) as hidden, scaled_heads(self.module, head_scale):
            logits = self.module(*arguments)
        # [1, T, D] in others' modules.
        return logits.float(), *(stream.flatten(0, -2) for stream in hidden)


def trace(subject: Subject) -> onnx.ModelProto:
    """Trace a subject to a graph whose attention nodes have no body yet.

    Outputs are `logits` and every layer's `hidden` (all T rows); `attnserve.export.captures` adds the rest.
    """
    interface, num_layers = subject.interface, len(subject.layers)
    packed = _example(interface)
    num_rows = Dim("T")
    arguments = [
        torch.from_numpy(packed.inputs),
        torch.from_numpy(packed.positions % interface.max_length),
        torch.from_numpy(packed.slots),
        torch.ones(num_layers, subject.layers[0].num_heads),
    ]
    names = [TOKENS if interface.num_features is None else FEATURES, POSITIONS, SLOTS, HEAD_SCALE]
    sizes: list[dict[int, Dim] | None] = [{0: num_rows}, {0: num_rows}, {0: Dim("B"), 1: Dim("N")}, None]
    if interface.has_rows:
        arguments.append(torch.arange(4))
        names.append(ROWS)
        sizes.append({0: Dim("R")})
    with lowered(subject.module), warnings.catch_warnings():
        # The exporter's own: deprecations inside torch and onnxscript that no caller can act upon.
        warnings.simplefilter("ignore")
        program = _export(
            _Graph(subject).eval(),
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[LOGITS, *(capture_name(layer, "hidden") for layer in range(num_layers))],
            dynamic_shapes=tuple(sizes),
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _check_sizes(graph, dict(zip(names, sizes, strict=True)))
    return graph


def _check_sizes(model: onnx.ModelProto, sizes: dict[str, dict[int, Dim] | None]) -> None:
    """Refuse a graph for the example's sizes alone: the tracer makes a constant of what a module turns into an int.

    Raises:
        ModuleError: names the input.
    """
    shapes = {entry.name: entry.type.tensor_type.shape.dim for entry in model.graph.input}
    for name, dynamic in sizes.items():
        if any(not shapes[name][axis].dim_param for axis in dynamic or {}):
            got = [dim.dim_param or dim.dim_value for dim in shapes[name]]
            raise ModuleError(
                f"module: expected to run on any number of rows, but its graph takes {name} {got} only; "
                "sizes have to be read as x.shape[0], not len(x), and never turned into int"
            )


def _export(*arguments: Any, **options: Any) -> torch.onnx.ONNXProgram | None:
    try:
        return torch.onnx.export(*arguments, **options)
    except torch.onnx.errors.OnnxExporterError as error:
        # Torch says first what it tried, and last, some thousand lines on, what went wrong.
        reasons = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ModuleError(f"module: torch cannot trace it: {reasons[0]}") from error


def _example(interface: Interface) -> Packed:
    if interface.num_features is not None:
        return pack([np.ones((length, interface.num_features), np.float32) for length in EXAMPLE_LENGTHS])
    assert interface.vocabulary_size is not None
    return pack([np.arange(length) % interface.vocabulary_size for length in EXAMPLE_LENGTHS])
