"""Answers: what a request becomes before and when it is written in a format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.service.engine import Answer
from attnserve.service.formats.coding import SCALE, code
from attnserve.service.formats.headers import describe_array, describe_coding, describe_layers, describe_selection
from attnserve.service.formats.negotiation import JSON, PNG
from attnserve.service.formats.picture import MAX_PANELS, Panel, draw_panels
from attnserve.service.formats.respond import respond
from attnserve.service.formats.tensors import Written, write_tensors
from attnserve.service.prediction import render_prediction
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.selection import Selection
from attnserve.service.sequences import Reader

Arrays = list[dict[str, NDArray[np.floating[Any]]]]

AXES = ("layer", "head", "query", "key")


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
            render_prediction(answer.logits, None if is_whole else positions, request.top_k, reader.name_class)
            for answer, positions in zip(answers, request.positions, strict=True)
        ],
        "warnings": list(manifest.warnings),
    }
    if attention is not None or request.has_text:
        document["tokens"] = [reader.list_tokens(read) for read in request.inputs]
    if attention is not None:
        document |= {
            "quantity": attention.quantity,
            "causal": manifest.causal,
            "layers": attention.layers,
            "variants": [manifest.layers[layer].variant for layer in attention.layers],
            "heads": attention.heads,
            "queries": [steps.tolist() for steps in attention.queries],
        }
    return document


def describe_headers(manifest: Manifest, attention: Selection) -> dict[str, str]:
    """The same about the arrays in short, for whoever reads no body."""
    selected = {"layers": attention.layers, "heads": attention.heads}
    if len(attention.queries) == 1:
        selected["queries"] = attention.queries[0].tolist()
    layers = [manifest.layers[index] for index in attention.layers]
    return {**describe_layers(layers, causal=manifest.causal), **describe_selection(**selected)}


def check_picture(request: PredictRequest) -> None:
    """Refuse what no picture can show, before any work.

    Raises:
        Invalid: several sequences.
        TooLarge: more maps than one can look at.
    """
    attention = request.attention
    assert attention is not None
    if len(request.inputs) > 1:
        raise Invalid.about("sequences", f"a picture shows one sequence, got {len(request.inputs)}")
    num_maps = len(attention.layers) * len(attention.heads)
    if num_maps > MAX_PANELS:
        message = f"a picture shows at most {MAX_PANELS} maps, got {num_maps}; ask for fewer layers or heads"
        raise TooLarge.about("layers", message)


def write_answer(content: Content, attention: Selection, media_type: str, encoding: str) -> Response:
    """The answer on the wire.

    Args:
        content: what it says.
        attention: that was asked about.
        media_type: one of `negotiation.FORMATS`.
        encoding: how to compress it.
    """
    is_map = attention.quantity != "diagnostics"
    if media_type == JSON:
        return respond(_write_json(content, attention), media_type, encoding)
    if media_type == PNG:
        return respond(_draw(content), media_type, encoding, content.headers)
    named, row_error = {}, 0.0
    for index, by_name in enumerate(content.arrays):
        for name, array in by_name.items():
            coded = code(array, attention.dtype if is_map else "float32")
            named[f"sequences.{index}.{name}"] = coded.values
            if coded.scale is not None:
                named[f"sequences.{index}.{name}.{SCALE}"] = coded.scale
            row_error = max(row_error, coded.row_error)
    headers = dict(content.headers)
    if is_map:
        headers |= describe_coding(attention.dtype, row_error)
        if len(content.arrays) == 1:
            headers |= describe_array(content.arrays[0][attention.quantity].shape, AXES)
    return respond(write_tensors(content.document, named, media_type), media_type, encoding, headers)


def write_predictions(document: dict[str, Any]) -> Response:
    """An answer without attention, as JSON."""
    return Response(_dump(document), media_type=JSON)


def _write_json(content: Content, attention: Selection) -> Written:
    """Everything as JSON; numbers are float32 in shortest exact form, never rounded."""
    is_map = attention.quantity != "diagnostics"
    entries = list(_list_maps(content, attention) if is_map else _list_diagnostics(content, attention))
    return Written(parts=[_dump({**content.document, "maps" if is_map else "diagnostics": entries})])


def _draw(content: Content) -> Written:
    document, ((weights, *_), *_) = content.document, [list(by_name.values()) for by_name in content.arrays]
    panels = [
        Panel(title=f"layer {layer} head {head}", values=weights[row, column])
        for row, layer in enumerate(document["layers"])
        for column, head in enumerate(document["heads"])
    ]
    caption = f"{document['model']} version {document['version']}: {document['quantity']}"
    return Written(parts=[draw_panels(panels, num_columns=len(document["heads"]), caption=caption)])


def _list_maps(content: Content, attention: Selection) -> Iterator[dict[str, Any]]:
    for sequence, by_name in enumerate(content.arrays):
        for row, layer in enumerate(attention.layers):
            for column, head in enumerate(attention.heads):
                yield {
                    "sequence": sequence,
                    "layer": layer,
                    "head": head,
                    "queries": content.document["queries"][sequence],
                    "weights": np.ascontiguousarray(by_name["weights"][row, column]),
                }


def _list_diagnostics(content: Content, attention: Selection) -> Iterator[dict[str, Any]]:
    for sequence, by_name in enumerate(content.arrays):
        for row, layer in enumerate(attention.layers):
            for column, head in enumerate(attention.heads):
                yield {
                    "sequence": sequence,
                    "layer": layer,
                    "head": head,
                    "variant": content.document["variants"][row],
                    **{name: array[row, column] for name, array in by_name.items()},
                }


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
