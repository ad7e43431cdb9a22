"""The capture pass: optional outputs that hold what attention maps are recomputed from.

Works on the finished graph, through the inputs of its attention nodes, so it knows nothing of the module that was
traced. Every output is gathered by the input `capture [C]` (packed rows): with C = 0 nothing is pinned or copied.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from attnserve.bundle import CAPTURE, HEAD_SCALE, OP_DOMAIN, Layer

METRIC_OP = "EllipticalMetric"


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The attention nodes in the order of the layers."""
    return [node for node in model.graph.node if node.domain == OP_DOMAIN and node.op_type != METRIC_OP]


def add_captures(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    head_projections: Sequence[NDArray[np.float64]],
    precision: str = "float32",
) -> None:
    """Add the `capture` input and the capture outputs of every layer.

    Args:
        model: a traced graph with `layers.{i}.hidden` outputs of all T rows; these are replaced.
        layers: what the manifest says of each layer.
        head_projections: per layer [D, H, V], the projection of each head's values to the residual stream.
        precision: of the graph. Captures are float16 where it is; numpy has no bfloat16, so those become float32.
    """
    capture_type = onnx.TensorProto.FLOAT16 if precision == "float16" else onnx.TensorProto.FLOAT
    casts = precision in ("float16", "bfloat16")
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info(CAPTURE, onnx.TensorProto.INT64, ["C"]))
    produced_by = {output: node for node in graph.node for output in node.output}
    nodes = attention_nodes(model)
    assert [node.op_type for node in nodes] == [layer.op for layer in layers]

    def add_gather(source: str, name: str, sizes: list[int]) -> None:
        gathered = f"{name}.captured" if casts else name
        graph.node.append(helper.make_node("Gather", [source, CAPTURE], [gathered], axis=0))
        if casts:
            graph.node.append(helper.make_node("Cast", [gathered], [name], to=capture_type))
        graph.output.append(helper.make_tensor_value_info(name, capture_type, ["C", *sizes]))

    for node, layer, projection in zip(nodes, layers, head_projections, strict=True):
        query, key, value = node.input[:3]
        keys = [layer.num_key_heads, layer.head_size]
        add_gather(query, layer.captures["query"], [layer.num_heads, layer.head_size])
        add_gather(key, layer.captures["key"], keys)
        if "metric" in layer.captures:
            add_gather(_find_metric(query, produced_by), layer.captures["metric"], keys)
        _add_value_norm(graph, value, layer, projection)
        all_rows = _rename_output(graph, layer.captures["hidden"])
        add_gather(all_rows, layer.captures["hidden"], [projection.shape[0]])


def make_head_scale_optional(model: onnx.ModelProto) -> None:
    """Give the input `head_scale` an initialiser of ones, so that a run without ablation need not feed it."""
    (entry,) = (entry for entry in model.graph.input if entry.name == HEAD_SCALE)
    shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), HEAD_SCALE))


def _rename_output(graph: onnx.GraphProto, name: str) -> str:
    """Turn an output of the graph into an inner value with another name, which is returned."""
    inner = f"{name}.all_rows"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, used in enumerate(names):
                if used == name:
                    names[index] = inner
    (output,) = (output for output in graph.output if output.name == name)
    graph.output.remove(output)
    return inner


def _find_metric(query: str, produced_by: dict[str, onnx.NodeProto]) -> str:
    """The metric that was multiplied into `query`, looking back no further than the layer's own nodes."""
    waiting, seen = [query], set()
    while waiting:
        node = produced_by.get(waiting.pop(0))
        # The projection of the query ends the search: what lies before it belongs to other layers.
        if node is None or node.output[0] in seen or node.op_type in ("MatMul", "Gemm"):
            continue
        if node.op_type == METRIC_OP:
            return str(node.output[0])
        seen.add(node.output[0])
        waiting += node.input
    raise AssertionError(f"no metric is multiplied into {query}")


def _add_value_norm(graph: onnx.GraphProto, value: str, layer: Layer, projection: NDArray[np.float64]) -> None:
    """Norm of each captured value through its head's output projection: [C, H].

    |W v| = |R v| with W = Q R, so V x V numbers per head do instead of D x V.
    """
    name = layer.captures["value_norm"]
    factors = np.stack([np.linalg.qr(projection[:, head]).R.T for head in range(layer.num_heads)])
    group = layer.num_heads // layer.num_key_heads
    constants: dict[str, NDArray[Any]] = {
        "factors": factors.astype(np.float32),
        "read_heads": np.arange(layer.num_heads, dtype=np.int64) // group,
        # One row more than asked for, cut off at the end: on an empty tensor (C = 0) ONNX Runtime's Reduce ops return
        # a wrong shape, and its fusion of Transpose into MatMul divides by zero, which ends the process.
        "extra": np.array([0], np.int64),
        "first": np.array([0], np.int64),
        "last": np.array([-1], np.int64),
    }
    for suffix, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Concat", [CAPTURE, f"{name}.extra"], f"{name}.rows", {"axis": 0}),
        ("Gather", [value, f"{name}.rows"], f"{name}.captured", {"axis": 0}),
        ("Cast", [f"{name}.captured"], f"{name}.wide", {"to": onnx.TensorProto.FLOAT}),
        ("Gather", [f"{name}.wide", f"{name}.read_heads"], f"{name}.values", {"axis": 1}),
        ("Transpose", [f"{name}.values"], f"{name}.by_head", {"perm": [1, 0, 2]}),
        ("MatMul", [f"{name}.by_head", f"{name}.factors"], f"{name}.projected", {}),
        ("ReduceL2", [f"{name}.projected", f"{name}.last"], f"{name}.norms", {"keepdims": 0}),
        ("Transpose", [f"{name}.norms"], f"{name}.by_row", {"perm": [1, 0]}),
        ("Slice", [f"{name}.by_row", f"{name}.first", f"{name}.last", f"{name}.first"], name, {}),
    ]
    for op_type, inputs, output, attributes in steps:
        graph.node.append(helper.make_node(op_type, inputs, [output], **attributes))
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["C", layer.num_heads]))
