"""Answers: what a request becomes on the wire, as JSON, safetensors or npz."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from safetensors.numpy import save

from attnserve.bundle import Manifest
from attnserve.service.engine import Answer
from attnserve.service.prediction import render_prediction
from attnserve.service.preprocess import AttentionRequest, PredictRequest
from attnserve.service.problems import NotAcceptable

JSON, SAFETENSORS, NPZ = "application/json", "application/x-safetensors", "application/x-npz"
FORMATS = (JSON, SAFETENSORS, NPZ)

Arrays = list[dict[str, NDArray[np.floating[Any]]]]


def choose_format(accept: str | None) -> str:
    """The media type to answer with: the first of the client's that exists, by its q-values.

    Raises:
        NotAcceptable: none of them does.
    """
    wanted = []
    for place, entry in enumerate((accept or "*/*").split(",")):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            wanted.append((-float(quality), place, media_type.lower()))
        except ValueError:
            wanted.append((0.0, place, media_type.lower()))
    for negative_quality, _, media_type in sorted(wanted):
        if negative_quality == 0:
            continue
        if media_type in ("*/*", "application/*"):
            return JSON
        if media_type in FORMATS:
            return media_type
    raise NotAcceptable(f"Accept: expected one of {', '.join(FORMATS)}, got {(accept or '')[:100]!r}")


def describe_answer(
    model: str, version: int, manifest: Manifest, request: PredictRequest, answers: Sequence[Answer]
) -> dict[str, Any]:
    """The part of the answer that is JSON in every format: predictions, and what the arrays mean."""
    document: dict[str, Any] = {
        "model": model,
        "version": version,
        "predictions": [
            render_prediction(answer.logits, positions, request.top_k, manifest.labels)
            for answer, positions in zip(answers, request.positions, strict=True)
        ],
        "warnings": list(manifest.warnings),
    }
    attention = request.attention
    if attention is not None:
        document |= {
            "quantity": attention.quantity,
            "causal": manifest.causal,
            "tokens": [sequence.tolist() for sequence in request.sequences],
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
    named = {
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


def _list_maps(document: dict[str, Any], attention: AttentionRequest, arrays: Arrays) -> list[dict[str, Any]]:
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


def _list_diagnostics(document: dict[str, Any], attention: AttentionRequest, arrays: Arrays) -> list[dict[str, Any]]:
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
