"""Answers: what a request becomes before and when it is written in a format."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.service.entries import add_entries, describe_question, list_places
from attnserve.service.formats.coding import SCALE, code
from attnserve.service.formats.headers import describe_array, describe_coding, describe_layers, describe_selection
from attnserve.service.formats.negotiation import JSON, PNG
from attnserve.service.formats.picture import Panel, check_panels, draw_panels
from attnserve.service.formats.respond import respond
from attnserve.service.formats.tensors import Written, write_tensors
from attnserve.service.heads import Heads
from attnserve.service.job import Answer
from attnserve.service.layout import coding_of
from attnserve.service.prediction import render_prediction
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Invalid
from attnserve.service.question import MAPS, Question
from attnserve.service.sequences import Reader

Arrays = list[dict[str, NDArray[np.floating[Any]]]]

# Of a picture whose panels are no grid of layers and heads.
MAX_COLUMNS = 16


# Without a repr: it is user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Content:
    """What an answer says about attention."""

    document: dict[str, Any]
    """The part that is JSON in every format."""
    arrays: Arrays
    """Per sequence, by name, in float32."""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays."""
        return sum(array.nbytes for by_name in self.arrays for array in by_name.values())


def describe_answer(
    model: str, version: int, reader: Reader, request: PredictRequest, answers: Sequence[Answer]
) -> dict[str, Any]:
    """The part of the answer that is JSON in every format: predictions, and what the arrays mean."""
    manifest, attention = reader.manifest, request.attention
    is_whole = manifest.task == "classify_sequence"
    document: dict[str, Any] = {
        "model": model,
        "version": version,
        "predictions": [
            render_prediction(answer.find_top(request.top_k), None if is_whole else positions, reader.name_class)
            for answer, positions in zip(answers, request.positions, strict=True)
        ],
        "warnings": list(manifest.warnings),
    }
    if attention is not None or request.has_text:
        document["tokens"] = [reader.list_tokens(read) for read in request.inputs]
    if attention is not None:
        document |= describe_question(request, manifest.layers, causal=manifest.causal)
    return document


def describe_headers(manifest: Manifest, question: Question) -> dict[str, str]:
    """The same about the arrays in short, for whoever reads no body."""
    selected = {} if question.is_paired else {"layers": question.layers, "heads": question.heads}
    if len(question.queries) == 1:
        selected["queries"] = question.queries[0].tolist()
    layers = [manifest.layers[index] for index in question.layers]
    return {**describe_layers(layers, causal=manifest.causal), **describe_selection(**selected)}


def has_picture(question: Question) -> bool:
    """Whether the answer is maps, which can be drawn."""
    return question.quantity in (*MAPS, "received", "rollout") and not question.is_sparse


def check_picture(request: PredictRequest) -> None:
    """Refuse what no picture can show, before any work.

    Raises:
        Invalid: several sequences.
        TooLarge: more maps than one can look at.
    """
    assert request.attention is not None
    if len(request.inputs) > 1:
        raise Invalid.about("sequences", f"a picture shows one sequence, got {len(request.inputs)}")
    check_panels(math.prod(Heads(request.attention).shape), "layers")


def write_answer(content: Content, question: Question, media_type: str, encoding: str) -> Response:
    """The answer on the wire.

    Args:
        content: what it says.
        question: that was asked about attention.
        media_type: one of `negotiation.FORMATS`.
        encoding: how to compress it.
    """
    if media_type == JSON:
        document = add_entries(content.document, question, content.arrays)
        return respond(Written(parts=[_dump(document)]), media_type, encoding)
    if media_type == PNG:
        return respond(_draw(content, question), media_type, encoding, content.headers)
    named, row_error = {}, 0.0
    for index, by_name in enumerate(content.arrays):
        for name, array in by_name.items():
            coded = code(array, coding_of(question, name))
            named[f"sequences.{index}.{name}"] = coded.values
            if coded.scale is not None:
                named[f"sequences.{index}.{name}.{SCALE}"] = coded.scale
            row_error = max(row_error, coded.row_error)
    headers = dict(content.headers)
    if question.quantity != "diagnostics":
        headers |= describe_coding(question.dtype, row_error)
        if len(content.arrays) == 1 and question.quantity in content.arrays[0]:
            shape = content.arrays[0][question.quantity].shape
            headers |= describe_array(shape, content.document["axes"][question.quantity])
    return respond(write_tensors(content.document, named, media_type), media_type, encoding, headers)


def write_predictions(document: dict[str, Any]) -> Response:
    """An answer without attention, as JSON."""
    return Response(_dump(document), media_type=JSON)


def _draw(content: Content, question: Question) -> Written:
    document, array = content.document, content.arrays[0][question.quantity]
    panels = []
    for place in list_places(question):
        sides = [f"{side} {place[side]}" for side in ("layer", "head") if place[side] is not None]
        panels.append(Panel(title=" ".join(sides), values=np.atleast_2d(array[place["at"]])))
    num_columns = array.shape[1] if document["axes"][question.quantity][1:2] == ("head",) else len(panels)
    caption = f"{document['model']} version {document['version']}: {document['quantity']}"
    return Written(parts=[draw_panels(panels, num_columns=min(num_columns, MAX_COLUMNS), caption=caption)])


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
