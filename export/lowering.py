"""Lowering: while a model is traced, each `Attention` emits its op of domain `attnserve` instead of computing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnserve.bundle import OP_DOMAIN, OP_VERSION
from attnserve.models.attention.layer import Attention
from attnserve.models.attention.recording import attention_layers, replaced_attend


@contextmanager
def lowered(model: nn.Module) -> Iterator[None]:
    """Swap the functions of every `Attention` in `model` for symbolic ops, and put them back afterwards."""
    measures = [(layer, layer.measure) for layer in attention_layers(model) if layer.measure is not None]
    try:
        for layer, _ in measures:
            layer.measure = _Measure(layer)
        with replaced_attend(model, lambda _, layer: _Attend(layer)):
            yield
    finally:
        for layer, measure in measures:
            layer.measure = measure


class _Attend:
    """Emits the attention node of a layer."""

    def __init__(self, layer: Attention) -> None:
        self.op = layer.variant.op
        self.attributes: dict[str, Any] = {
            "causal": int(layer.causal),
            "scale": float(layer.scale),
            "epsilon": float(layer.config.epsilon),
            "window": layer.config.window,
            "softcap": float(layer.config.softcap),
        }

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{OP_DOMAIN}::{self.op}",
            (query, key, value, slots),
            self.attributes,
            dtype=value.dtype,
            shape=(query.shape[0], query.shape[1], value.shape[2]),
            version=OP_VERSION,
        )


class _Measure:
    """Emits the metric node of a layer."""

    def __init__(self, layer: Attention) -> None:
        assert layer.variant.metric_op is not None
        self.op = layer.variant.metric_op
        prefix, mean = layer.config.scope == "prefix", layer.config.scaling == "mean"
        self.attributes: dict[str, Any] = {"prefix": int(prefix), "mean": int(mean)}

    def __call__(self, value: Tensor, previous_value: Tensor, slots: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{OP_DOMAIN}::{self.op}",
            (value, previous_value, slots),
            self.attributes,
            dtype=value.dtype,
            shape=tuple(value.shape),
            version=OP_VERSION,
        )
