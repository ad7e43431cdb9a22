"""Describing a subject: what the manifest says of its layers and tensors."""

import hashlib
from collections.abc import Sequence

import onnx
import torch
from torch import nn

from attnserve import bundle
from attnserve.export import subject
from attnserve.interface import Interface

DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
}


def describe_layers(layers: Sequence[subject.Layer]) -> tuple[bundle.Layer, ...]:
    """What the manifest says of each layer."""
    described = []
    for index, layer in enumerate(layers):
        attention = layer.attention
        config, variant = attention.config, attention.variant
        kinds = [kind for kind in bundle.CAPTURES if kind != "metric" or variant.metric_op is not None]
        described.append(
            bundle.Layer(
                variant=variant.name,
                op=variant.op,
                weighting=variant.weighting,
                causal=attention.causal,
                scale=attention.scale,
                epsilon=config.epsilon,
                window=config.window,
                softcap=config.softcap,
                scope=config.scope,
                scaling=config.scaling,
                num_heads=layer.num_heads,
                num_key_heads=layer.num_key_heads,
                head_size=layer.head_size,
                value_size=layer.value_size,
                captures={kind: bundle.capture_name(index, kind) for kind in kinds},
            )
        )
    return tuple(described)


def describe_tensor(entry: onnx.ValueInfoProto) -> bundle.Tensor:
    """An input or output of a graph; symbolic sizes are letters."""
    tensor = entry.type.tensor_type
    shape = tuple(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return bundle.Tensor(name=entry.name, dtype=DTYPES[tensor.elem_type], shape=shape)


def warnings_about(layers: Sequence[bundle.Layer], interface: Interface) -> tuple[str, ...]:
    """What a reader of this model's answers must know; carried by every answer."""
    warnings = [
        f"layer {index} estimates its metric from the whole sequence (scope sequence-leaky): answers at a position "
        "depend on later tokens"
        for index, layer in enumerate(layers)
        if layer.scope == "sequence-leaky"
    ]
    if interface.task == "next_token" and not all(layer.causal for layer in layers):
        warnings.append("bidirectional: only the last position predicts a token the model has not seen")
    return tuple(warnings)


def hash_state(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a module's parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
