"""A model as the Open Inference Protocol sees it: its tensors, and how they become a request."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import CAPTURES, FEATURES, LOGITS, TOKENS, Manifest
from attnserve.packing import add_leading_row
from attnserve.service.attention import captures_for
from attnserve.service.deadline import parse_timeout
from attnserve.service.oip.request import Request, Wanted
from attnserve.service.oip.tensors import Spec
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import BadRequest, Invalid
from attnserve.service.question import Question
from attnserve.service.selection import describe
from attnserve.service.sequences import MAX_NUMBER, Input, Reader, parse_sequences

LENGTHS, TEXT = "lengths", "text"
WEIGHTS = "weights"
TELLING = ("query", "key", "hidden")
"""Captures that tell much of the weights."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request of the protocol, checked."""

    id: str | None
    predict: PredictRequest
    outputs: list[Wanted]
    captures: frozenset[str]
    """Outputs of the graph that must be captured."""

    @property
    def capture_bytes(self) -> int:
        """Memory of the captures that are outputs, until they are answered."""
        sizes = (math.prod(wanted.spec.shape[2:]) for wanted in self.outputs if wanted.spec.name in self.captures)
        return 4 * sum(sizes) * sum(self.predict.lengths)

    def tells_weights(self, manifest: Manifest) -> bool:
        """Whether one of the outputs tells much of the weights of the model."""
        telling = {layer.captures[kind] for layer in manifest.layers for kind in TELLING}
        return any(wanted.spec.name in telling for wanted in self.outputs)


def input_specs(reader: Reader) -> list[Spec]:
    """What the model reads: the first input, or another instead of it, and lengths for those that are padded."""
    manifest = reader.manifest
    lengths = Spec(name=LENGTHS, datatype="INT64", shape=(-1,), is_optional=True)
    if manifest.num_features is not None:
        return [Spec(name=FEATURES, datatype="FP32", shape=(-1, -1, manifest.num_features)), lengths]
    tokens = Spec(name=TOKENS, datatype="INT64", shape=(-1, -1), is_optional=reader.text is not None)
    text = Spec(name=TEXT, datatype="BYTES", shape=(-1,), is_optional=True)
    return [tokens, lengths] if reader.text is None else [text, tokens, lengths]


def output_spec(manifest: Manifest) -> Spec:
    """What the model answers without being asked for more."""
    shape = (-1, manifest.num_outputs) if manifest.task == "classify_sequence" else (-1, -1, manifest.num_outputs)
    return Spec(name=LOGITS, datatype="FP32", shape=shape)


def optional_outputs(manifest: Manifest) -> list[Spec]:
    """What can be asked for beside the logits: every layer's weights and captures, padded to the longest sequence."""
    shapes = {entry.name: entry.shape for entry in manifest.outputs}
    specs = []
    for index, layer in enumerate(manifest.layers):
        weights = (-1, layer.num_heads, -1, -1)
        specs.append(Spec(name=f"layers.{index}.{WEIGHTS}", datatype="FP32", shape=weights))
        for kind in CAPTURES:
            if kind in layer.captures:
                _, *sizes = shapes[layer.captures[kind]]
                shape = (-1, -1, *map(int, sizes))
                specs.append(Spec(name=layer.captures[kind], datatype="FP32", shape=shape))
    return specs


def parse_asked(request: Request, reader: Reader) -> Asked:
    """Turn tensors into sequences, and names of outputs into what must be computed.

    Raises:
        BadRequest: inputs that do not go together.
        Invalid: a tensor holds what the model cannot read; names it.
    """
    manifest = reader.manifest
    field = _find_input(request)
    inputs = _read_inputs(request, reader, field)
    lengths = [len(read.values) for read in inputs]
    names = [wanted.spec.name for wanted in request.outputs]
    layers = [index for index in range(len(manifest.layers)) if f"layers.{index}.{WEIGHTS}" in names]
    captures = frozenset(names) & {name for layer in manifest.layers for name in layer.captures.values()}
    attention = None
    if layers:
        attention = Question(
            layers=layers,
            heads=list(range(manifest.num_heads)),
            queries=[np.arange(length) for length in lengths],
            quantity="weights",
        )
        captures |= captures_for(manifest, attention)
    return Asked(
        id=request.id,
        predict=PredictRequest(
            inputs=inputs,
            field=field,
            positions=_read_positions(request, manifest, lengths),
            top_k=1,
            all_logits=LOGITS in names,
            attention=attention,
            timeout_ms=_read_timeout(request),
        ),
        outputs=request.outputs,
        captures=captures,
    )


def _read_timeout(request: Request) -> float | None:
    """The protocol's reserved parameter, in microseconds; 0 is no limit."""
    value = request.parameters.get("timeout", 0)
    return None if value == 0 and type(value) is int else parse_timeout(value, "parameters.timeout", unit_ms=1e-3)


def _read_positions(request: Request, manifest: Manifest, lengths: list[int]) -> list[NDArray[np.int64]]:
    default = "last" if manifest.task == "next_token" else "all"
    value = request.parameters.get("positions", default)
    if manifest.task == "classify_sequence":
        if "positions" in request.parameters:
            raise Invalid.about("parameters.positions", "this model answers once per sequence; expected none")
        return [np.array([manifest.answer_step(length)]) for length in lengths]
    if value not in ("last", "all"):
        raise Invalid.about("parameters.positions", f'expected "last" or "all", got {describe(value)}')
    return [np.arange(0 if value == "all" else length - 1, length) for length in lengths]


def _find_input(request: Request) -> str:
    """The name of the tensor that holds the sequences."""
    kinds = [name for name in (TOKENS, FEATURES, TEXT) if name in request.inputs]
    if len(kinds) != 1:
        raise BadRequest.about("inputs", f"expected either {TEXT} or {TOKENS}, got {'both' if kinds else 'neither'}")
    return kinds[0]


def _read_inputs(request: Request, reader: Reader, name: str) -> list[Input]:
    manifest, arrays = reader.manifest, request.inputs
    if name == TEXT:
        if LENGTHS in arrays:
            raise BadRequest.about("inputs", f"{LENGTHS}: texts have their own; expected none")
        # Without the texts, which no answer shows.
        return [Input(values=read.values) for read in parse_sequences(arrays[TEXT].tolist(), reader, TEXT)]
    padded = arrays[name]
    num_sequences, num_steps = padded.shape[:2]
    lengths = arrays.get(LENGTHS, np.full(num_sequences, num_steps))
    if len(lengths) != num_sequences:
        raise BadRequest.about(LENGTHS, f"expected {num_sequences}, one per sequence, got {len(lengths)}")
    longest = min(num_steps, manifest.max_length)
    wrong = np.flatnonzero((lengths < 1) | (lengths > longest))
    if len(wrong):
        field = f"{LENGTHS}[{wrong[0]}]" if LENGTHS in arrays else name
        raise Invalid.about(field, f"expected 1 to {longest} steps, got {lengths[wrong[0]]}")
    inside = np.arange(num_steps) < lengths[:, None]
    _check_values(name, padded, inside, manifest)
    # Copies: views would keep the body, padding and all, for as long as the shortest of them waits.
    sequences = [row[:length].copy() for row, length in zip(padded, lengths.tolist(), strict=True)]
    if manifest.leading_row:
        sequences = [add_leading_row(sequence) for sequence in sequences]
    return [Input(values=sequence) for sequence in sequences]


def _check_values(name: str, padded: NDArray[Any], inside: NDArray[np.bool_], manifest: Manifest) -> None:
    """What stands beyond a sequence's length is never read, whatever it is."""
    if name == FEATURES:
        wrong = ~(np.abs(padded) <= MAX_NUMBER).all(axis=2) & inside
        expected = "numbers from -1e12 to 1e12"
    else:
        wrong = ((padded < 0) | (padded >= (manifest.vocabulary_size or 0))) & inside
        expected = f"ids from 0 to {(manifest.vocabulary_size or 0) - 1}"
    if wrong.any():
        sequence, step = map(int, np.unravel_index(wrong.argmax(), wrong.shape))
        got = "others" if name == FEATURES else padded[sequence, step]
        raise Invalid.about(f"{name}[{sequence}][{step}]", f"expected {expected}, got {got}")
