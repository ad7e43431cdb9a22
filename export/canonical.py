"""Canonical graphs: the same function gives the same bytes in every process.

onnxscript keeps the variables of a loop in a set, so their order, and with it names and nodes, differs from one Python
process to the next. Here states of loops are ordered by name, nodes by what they compute, and values numbered.
"""

import copy
import itertools
from collections.abc import Iterator

import onnx


def canonicalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Order and rename what is in `model`, except for inputs, outputs and functions; the same object is returned."""
    graph = model.graph
    _order(graph)
    kept = {entry.name: entry.name for entry in (*graph.initializer, *graph.input, *graph.output)}
    _rename(graph, kept, (f"v{number}" for number in itertools.count()))
    return model


def _order(graph: onnx.GraphProto) -> None:
    producers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "Loop":
            _order_states(node)
        for inner in _inner_graphs(node):
            _order(inner)
        producers |= dict.fromkeys(node.output, copy.deepcopy(node))
    ordered: list[onnx.NodeProto] = []

    def visit(name: str) -> None:
        # Taken out, so each node is met once.
        node = producers.pop(name, None)
        if node is not None:
            for other in node.output:
                producers.pop(other, None)
            for used in names_used(node):
                visit(used)
            ordered.append(node)

    for output in graph.output:
        visit(output.name)
    del graph.node[:]
    graph.node.extend(ordered)


def _order_states(loop: onnx.NodeProto) -> None:
    (body,) = _inner_graphs(loop)
    order = sorted(range(len(loop.output)), key=lambda index: loop.input[2 + index])
    # A loop takes its count and condition before its states, and its body gives the condition before them.
    for names, first in ((loop.input, 2), (loop.output, 0)):
        names[first:] = [names[first + index] for index in order]
    for entries, first in ((body.input, 2), (body.output, 1)):
        states = [copy.deepcopy(entries[first + index]) for index in order]
        del entries[first:]
        entries.extend(states)


def _rename(graph: onnx.GraphProto, scope: dict[str, str], names: Iterator[str]) -> None:
    del graph.value_info[:]
    for node in graph.node:
        node.name = ""
        node.input[:] = [scope.get(name, name) for name in node.input]
        for inner in _inner_graphs(node):
            inner_scope = dict(scope)
            for entry in inner.input:
                inner_scope[entry.name] = next(names)
                entry.name = inner_scope[entry.name]
            _rename(inner, inner_scope, names)
            for entry in inner.output:
                entry.name = inner_scope[entry.name]
        for name in node.output:
            if name and name not in scope:
                scope[name] = next(names)
        node.output[:] = [scope.get(name, name) for name in node.output]


def names_used(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node, and what the graphs in its attributes may use of the graph around them."""
    used = list(node.input)
    for inner in _inner_graphs(node):
        used += [name for part in inner.node for name in names_used(part)]
        used += [entry.name for entry in inner.output]
    return used


def _inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for entry in node.attribute for graph in (entry.g, *entry.graphs) if graph.output]
