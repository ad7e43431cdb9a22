"""Attaching: give every custom op its function body, so any ONNX Runtime can run the file without a kernel."""

from typing import Any

import onnx
from onnxscript import OnnxFunction

from attnserve.bundle import OP_DOMAIN
from attnserve.export.bodies import BODIES, PARTS


def attach_bodies(model: onnx.ModelProto) -> None:
    """Add the bodies of all `attnserve` ops in use, and what they call, to `model`."""
    # Callees first: onnx's evaluator reads functions in the order of the file.
    known = {part.name: part for part in PARTS} | BODIES
    used: dict[str, OnnxFunction] = {}
    waiting = [node.op_type for node in model.graph.node if node.domain == OP_DOMAIN]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used[name] = known[name]
            proto = used[name].to_function_proto()
            waiting += [node.op_type for node in proto.node if node.domain == OP_DOMAIN]
    model.functions.extend(used[name].to_function_proto() for name in known if name in used)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its sources: thousands of absolute paths of the machine it ran on."""
    holders: list[Any] = [model, *model.functions]
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            holders += [graph, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
            nodes += graph.node
        else:
            node = nodes.pop()
            holders.append(node)
            # The branches of an `If` and the body of a `Loop` are graphs of their own.
            graphs += [graph for entry in node.attribute for graph in (entry.g, *entry.graphs) if graph.node]
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""
