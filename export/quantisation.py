"""int8 weights: matrices are stored as integers with a scale per output channel; what computes stays float32.

    W[n, k] = scale[n] * q[n, k],  scale[n] = max over k of |W[n, k]| / 127,  q an integer from -127 to 127

The graph widens them with ONNX's own `DequantizeLinear`, and the module gets the same numbers, so that golden is the
truth about the file. Activations are never rounded: with one scale for a batch an answer depends on its batch-mates,
with one per row it is as far from its weights as these are from those trained (docs/adr/0011-int8-weights.md).
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from attnserve.bundle import TOKENS
from attnserve.certificate import Quantisation
from attnserve.export.canonical import names_used
from attnserve.export.subject import ModuleError
from attnserve.export.trace import PREFIX
from attnserve.golden import Golden
from attnserve.interface import Interface
from attnserve.models.checkpoint import CheckpointError
from attnserve.models.prediction import predict_packed
from attnserve.models.threads import num_threads

# Symmetric: without -128 there is no zero point.
LARGEST = 127


@dataclass
class _Readers:
    """What reads a matrix of weights."""

    output_axes: list[int] = field(default_factory=list)
    """Of every product: the axis of the matrix that is its output channels."""
    has_lookups: bool = False
    """Whether `tokens` are looked up in it."""
    has_others: bool = False
    """Whether anything else reads it; then it stays as it is."""

    @property
    def is_turned(self) -> bool:
        """Whether its output channels are its columns."""
        return bool(self.output_axes) and all(self.output_axes) and not self.has_lookups


def quantise_weights(model: onnx.ModelProto, module: nn.Module) -> None:
    """Round the weights of products, and the table of the tokens, to int8: in the graph, and in the module.

    Which they are is decided by the graph, whatever module was traced: every parameter [n, k] that nothing reads but
    `MatMul` and `Gemm`, as their right operand, and a look-up of `tokens`.

    Args:
        model: a graph as `attnserve.export.trace` made it.
        module: the one that was traced, in float32.

    Raises:
        CheckpointError: a weight is not finite.
        ModuleError: there is nothing to round.
    """
    graph = model.graph
    tensors = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT and len(one.dims) == 2}
    parameters = {f"{PREFIX}{name}": one.detach() for name, one in module.named_parameters(remove_duplicate=False)}
    readers = _find_readers(graph, tensors)
    holders = {name: _find_holders(tensors[name], parameters) for name in readers}
    kept = {holder.data_ptr() for name in readers if readers[name].has_others for holder in holders[name]}
    found = {
        name: readers[name]
        for name, held in holders.items()
        if held and not any(holder.data_ptr() in kept for holder in held)
    }
    if not found:
        raise ModuleError("module: expected Linear layers whose weights can be rounded to int8, found none")
    for name, read in found.items():
        matrix = numpy_helper.to_array(tensors[name])
        integers, scale = round_rows(name.removeprefix(PREFIX), matrix.T if read.is_turned else matrix)
        widened = torch.from_numpy(integers * scale[:, None])
        for holder in holders[name]:
            holder.copy_(widened.T if read.is_turned else widened)
        tensors[name].CopyFrom(numpy_helper.from_array(integers, name))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
    nodes = list(_widen(graph.node, found))
    del graph.node[:]
    graph.node.extend(nodes)
    # The exporter notes the types of initialisers there too.
    noted = [entry for entry in graph.value_info if entry.name not in found]
    del graph.value_info[:]
    graph.value_info.extend(noted)


def round_rows(name: str, rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers [n, k] and the scale [n] of every row.

    Raises:
        CheckpointError: a number is not finite.
    """
    largest = np.abs(rows).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise CheckpointError(f"weights: {name}: expected finite numbers to round to int8, got others")
    scale = largest / np.float32(LARGEST)
    # A row of zeros, or of numbers so small that their scale is none.
    scale[scale == 0] = 1.0
    integers = np.rint(rows / scale[:, None]).clip(-LARGEST, LARGEST)
    return np.ascontiguousarray(integers, np.int8), scale


# The same numbers as golden's, and golden's reason.
@num_threads(1)
def measure_quantisation(original: nn.Module, golden: Golden, interface: Interface) -> Quantisation:
    """What rounding changed in golden's answers.

    Args:
        original: the module before its weights were rounded, in float64.
        golden: recorded with rounded weights.
        interface: what the module reads and answers.
    """
    with torch.no_grad():
        answers = torch.cat([predict_packed(original, interface, [sequence])[0] for sequence in golden.sequences])
    if interface.task != "classify_sequence":
        answers = answers[golden.logit_rows]
    rounded = torch.from_numpy(golden.logits)
    differences = (answers - rounded).abs()
    log_before, log_after = answers.log_softmax(1), rounded.log_softmax(1)
    divergence = (log_before.exp() * (log_before - log_after)).sum(1).mean() / math.log(2)
    return Quantisation(
        num_answers=len(answers),
        largest_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        top1_agreement=float((answers.argmax(1) == rounded.argmax(1)).double().mean()),
        # Rounding of the sum may leave less than nothing.
        kl_bits=max(0.0, float(divergence)),
    )


def _find_readers(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, _Readers]:
    """Who reads each of the initialisers `names`; those that nobody reads are left out."""
    readers: dict[str, _Readers] = {}
    wanted = set(names)
    turned: dict[str, str] = {}
    for node in graph.node:
        if node.input and node.input[0] in wanted and _is_transpose(node):
            turned[node.output[0]] = node.input[0]
            continue
        for index, used in enumerate(names_used(node)):
            name = turned.get(used, used)
            if name not in wanted:
                continue
            found = readers.setdefault(name, _Readers())
            if index == 1 and node.op_type in ("MatMul", "Gemm"):
                axis = 0 if node.op_type == "Gemm" and _attribute(node, "transB") else 1
                found.output_axes.append(axis if used == name else 1 - axis)
            elif used == name and _is_lookup(node):
                found.has_lookups = True
            else:
                found.has_others = True
    for entry in graph.output:
        name = turned.get(entry.name, entry.name)
        if name in wanted:
            readers.setdefault(name, _Readers()).has_others = True
    return readers


def _find_holders(tensor: onnx.TensorProto, parameters: dict[str, Tensor]) -> list[Tensor]:
    """The parameters that an initialiser is of, as it has them.

    A small one that is read transposed is stored so by the exporter, under a name that says nothing: then it is of all
    parameters of the same numbers.
    """
    if tensor.name in parameters:
        return [parameters[tensor.name]]
    matrix = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    return [one.T for one in parameters.values() if one.ndim == 2 and torch.equal(one.T, matrix)]


def _widen(nodes: Iterable[onnx.NodeProto], found: dict[str, _Readers]) -> Iterator[onnx.NodeProto]:
    """The nodes; matrices are widened before they are multiplied with, rows of the table of tokens once looked up."""
    # In front of all: of what a node reads, ONNX Runtime computes first what stands last in the file. Further down,
    # matrices of many layers would be widened before the first layer runs, and be held until theirs does.
    for name, read in found.items():
        if read.output_axes:
            # Stored by columns, ONNX Runtime would multiply it with rounded activations.
            rows = f"{name}.rows" if read.is_turned else f"{name}.widened"
            yield helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [rows], axis=0)
            if read.is_turned:
                yield helper.make_node("Transpose", [rows], [f"{name}.widened"], perm=[1, 0])
    for node in nodes:
        if _is_lookup(node) and node.input[0] in found:
            table, tokens, output = node.input[0], node.input[1], node.output[0]
            # Rows first: the table as a whole is never widened.
            yield helper.make_node("Gather", [table, tokens], [f"{output}.integers"], axis=0)
            yield helper.make_node("Gather", [f"{table}.scale", tokens], [f"{output}.scale"], axis=0)
            yield helper.make_node("DequantizeLinear", [f"{output}.integers", f"{output}.scale"], [output], axis=0)
            continue
        read_widened = copy.deepcopy(node)
        read_widened.input[:] = [f"{name}.widened" if name in found else name for name in node.input]
        yield read_widened


def _is_transpose(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and all(list(entry.ints) == [1, 0] for entry in node.attribute)


def _is_lookup(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gather" and node.input[1] == TOKENS and _attribute(node, "axis") == 0


def _attribute(node: onnx.NodeProto, name: str) -> int:
    """An integer attribute; 0, which is the default of all that are asked for, where it is missing."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), 0)
