"""Answers: what a request becomes on the wire, as JSON, safetensors or npz."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from safetensors.numpy import save

from attnserve.service.engine import Answer
from attnserve.service.prediction import render_prediction
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import NotAcceptable
from attnserve.service.selection import Selection
from attnserve.service.sequences import Reader

JSON, SAFETENSORS, NPZ = "application/json", "application/x-safetensors", "application/x-npz"
EVENTS = "text/event-stream"
FORMATS = (JSON, SAFETENSORS, NPZ)

Arrays = list[dict[str, NDArray[np.floating[Any]]]]


def choose_format(accept: str | None, formats: Sequence[str] = FORMATS) -> str:
    """The media type to answer with: the highest q-value wins, then the client's order, then ours.

    Args:
        accept: the `Accept` header. Of several entries that fit a format, the most specific one speaks for it.
        formats: what this answer can be written as.

    Raises:
        NotAcceptable: none of them is wanted.
    """
    if not accept or accept == "*/*":
        return formats[0]
    entries = [_parse_range(entry) for entry in accept.split(",")]
    best, best_rank = None, (0.0, 0)
    for media_type in formats:
        for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
            ranks = [(quality, -place) for place, (name, quality) in enumerate(entries) if name == media_range]
            if ranks:
                if max(ranks)[0] > 0 and (best is None or max(ranks) > best_rank):
                    best, best_rank = media_type, max(ranks)
                break
    if best is None:
        raise NotAcceptable.about("Accept", f"expected one of {', '.join(formats)}, got {accept[:100]!r}")
    return best


def _parse_range(entry: str) -> tuple[str, float]:
    """Media range and q-value of one entry of `Accept`; one that cannot be read has a q-value of 0."""
    media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
    text = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    # RFC 9110: at most three digits. `float` would also take "nan", "inf" and "1_0".
    return media_range, float(text) if re.fullmatch(r"[01](\.\d{0,3})?", text) else 0.0


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


def render_json(document: dict[str, Any], request: PredictRequest, arrays: Arrays | None) -> Response:
    """Everything as JSON; numbers are float32 in shortest exact form, never rounded."""
    if arrays is not None:
        assert request.attention is not None
        entries = _list_maps if request.attention.quantity == "weights" else _list_diagnostics
        key = "maps" if request.attention.quantity == "weights" else "diagnostics"
        document = {**document, key: entries(document, request.attention, arrays)}
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def render_binary(document: dict[str, Any], arrays: Arrays, media_type: str) -> Response:
    """The arrays as named tensors `sequences.{i}.{name}`, with the JSON part beside them.

    safetensors: metadata `answer`. npz: array `answer`, the JSON text as bytes.
    """
    named: dict[str, Any] = {
        f"sequences.{index}.{name}": np.ascontiguousarray(array)
        for index, by_name in enumerate(arrays)
        for name, array in by_name.items()
    }
    answer = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if media_type == SAFETENSORS:
        return Response(save(named, metadata={"answer": answer.decode()}), media_type=media_type)
    buffer = io.BytesIO()
    np.savez(buffer, answer=np.frombuffer(answer, np.uint8), **named)
    return Response(buffer.getvalue(), media_type=media_type)


def _list_maps(document: dict[str, Any], attention: Selection, arrays: Arrays) -> list[dict[str, Any]]:
    return [
        {
            "sequence": sequence,
            "layer": layer,
            "head": head,
            "queries": document["queries"][sequence],
            "weights": np.ascontiguousarray(by_name["weights"][row, column], np.float32),
        }
        for sequence, by_name in enumerate(arrays)
        for row, layer in enumerate(attention.layers)
        for column, head in enumerate(attention.heads)
    ]


def _list_diagnostics(document: dict[str, Any], attention: Selection, arrays: Arrays) -> list[dict[str, Any]]:
    return [
        {
            "sequence": sequence,
            "layer": layer,
            "head": head,
            "variant": document["variants"][row],
            **{name: array[row, column] for name, array in by_name.items()},
        }
        for sequence, by_name in enumerate(arrays)
        for row, layer in enumerate(attention.layers)
        for column, head in enumerate(attention.heads)
    ]
