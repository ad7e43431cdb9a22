"""Tracing: the one `torch.onnx.export` call, with the graph's names and dynamic sizes."""

import logging
import warnings

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from attnserve.bundle import HEAD_SCALE, LOGITS, POSITIONS, ROWS, SLOTS, TOKENS, capture_name
from attnserve.export.bodies.domain import OPSET
from attnserve.export.lowering import lowered
from attnserve.models.transformer import Transformer
from attnserve.packing import pack

# Sizes that all differ: T = 16, B = 3, N = 7, R = 4. Equal ones would be traced as one.
EXAMPLE_LENGTHS = (7, 4, 5)


# It says at every export that torchvision is not installed.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


class _Graph(nn.Module):
    """The model with its outputs as a flat tuple, in the order of `output_names`."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, rows: Tensor, head_scale: Tensor
    ) -> tuple[Tensor, ...]:
        output = self.model(tokens, positions, slots, rows, head_scale)
        return output.logits, *output.hidden


def trace(model: Transformer) -> onnx.ModelProto:
    """Trace `model` to a graph whose attention nodes have no body yet.

    Outputs are `logits` and every layer's `hidden` (all T rows); `attnserve.export.captures` adds the rest.
    """
    config = model.config
    packed = pack([torch.arange(length).numpy() % config.vocabulary_size for length in EXAMPLE_LENGTHS])
    arguments = (
        torch.from_numpy(packed.tokens),
        torch.from_numpy(packed.positions % config.max_length),
        torch.from_numpy(packed.slots),
        torch.arange(4),
        torch.ones(config.num_layers, config.num_heads),
    )
    num_rows = Dim("T")
    with lowered(model), warnings.catch_warnings():
        # The exporter's own: deprecations inside torch and onnxscript that no caller can act upon.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model).eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=[TOKENS, POSITIONS, SLOTS, ROWS, HEAD_SCALE],
            output_names=[LOGITS, *(capture_name(layer, "hidden") for layer in range(config.num_layers))],
            dynamic_shapes=({0: num_rows}, {0: num_rows}, {0: Dim("B"), 1: Dim("N")}, {0: Dim("R")}, None),
            verbose=False,
        )
    assert program is not None
    return program.model_proto
