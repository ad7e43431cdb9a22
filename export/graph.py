"""The graphs of a bundle, from a traced subject to files."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import inliner

from attnserve import bundle
from attnserve.export.attach import attach_bodies, strip_metadata
from attnserve.export.canonical import canonicalise
from attnserve.export.captures import add_captures, make_head_scale_optional
from attnserve.export.quantisation import quantise_weights
from attnserve.export.subject import Subject
from attnserve.export.top import add_top
from attnserve.export.trace import trace
from attnserve.export.weights import NORMALISERS, ROWS, WEIGHTS

# Beyond it the weights lie in a file of their own: protobuf ends at 2 GB, and reads a file as a whole before that.
MAX_INLINE_BYTES = 1 << 30


def build_graph(
    subject: Subject, layers: Sequence[bundle.Layer], *, portable: bool, top_k: int | None = None
) -> onnx.ModelProto:
    """The model's graph, complete. In int8 the subject's weights become those of the graph."""
    graph = trace(subject)
    if subject.precision == "int8":
        quantise_weights(graph, subject.module)
    attach_bodies(graph)
    add_captures(graph, layers, [layer.head_projections for layer in subject.layers], subject.precision)
    make_head_scale_optional(graph)
    if top_k is not None:
        add_top(graph, top_k)
    strip_metadata(graph)
    return inline_bodies(graph) if portable else graph


def build_weights_graphs(weighting: str, *, portable: bool) -> dict[str, onnx.ModelProto]:
    """The graphs of a weighting, by their path in the bundle."""
    functions = {
        bundle.weights_file(weighting): WEIGHTS,
        bundle.normaliser_file(weighting): NORMALISERS,
        bundle.rows_file(weighting): ROWS,
    }
    graphs = {path: canonicalise(by_name[weighting].to_model_proto()) for path, by_name in functions.items()}
    return {path: inline_bodies(graph) if portable else graph for path, graph in graphs.items()}


def inline_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every function put in the place of its calls, and no domain but ONNX's own."""
    with _without_weights(model):
        inlined = inliner.inline_local_functions(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in inlined.graph.initializer:
        tensor.CopyFrom(weights[tensor.name])
    used = {node.domain for node in inlined.graph.node}
    kept = [entry for entry in inlined.opset_import if entry.domain in used or not entry.domain]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph, its weights beside it if they are large, and check the file."""
    num_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if num_bytes > MAX_INLINE_BYTES:
        onnx.save(model, path, save_as_external_data=True, location=bundle.MODEL_DATA_FILE)
        # onnx makes it readable by its owner alone, whatever the umask says.
        shutil.copymode(path, path.with_name(bundle.MODEL_DATA_FILE))
    else:
        onnx.save(model, path)
    # From the file, not from memory: only so can it be larger than protobuf.
    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def _without_weights(model: onnx.ModelProto) -> Iterator[None]:
    """Take the numbers of large initialisers out for a while: the inliner passes models through protobuf."""
    taken = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1024]
    data = [tensor.raw_data for tensor in taken]
    try:
        for tensor in taken:
            tensor.ClearField("raw_data")
        yield
    finally:
        for tensor, raw in zip(taken, data, strict=True):
            tensor.raw_data = raw
