"""Answers of the Open Inference Protocol: padded tensors, as JSON or binary."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from attnserve.bundle import LOGITS
from attnserve.resident import fetch
from attnserve.service.attention import compute_arrays
from attnserve.service.formats.negotiation import JSON
from attnserve.service.job import Answer, logits_of
from attnserve.service.model import ServedModel
from attnserve.service.oip.mapping import WEIGHTS, Asked
from attnserve.service.oip.request import HEADER
from attnserve.service.oip.tensors import render_tensor
from attnserve.service.prediction import check_finite
from attnserve.service.problems import TooLarge
from attnserve.service.selection import MAX_ENTRIES

BINARY = "application/octet-stream"


def count_numbers(asked: Asked, *, max_response_bytes: int) -> int:
    """How many numbers an answer has, padding included.

    Raises:
        TooLarge: more than it may; names the output. To be called before any work.
    """
    num_steps = max(asked.predict.lengths)
    num_positions = max(map(len, asked.predict.positions))
    num_json = num_binary = 0
    for index, wanted in enumerate(asked.outputs):
        # Of the free sizes the first is the number of sequences, the others are steps.
        free = num_positions if wanted.spec.name == LOGITS else num_steps
        sizes = (free if size == -1 else size for size in wanted.spec.shape[1:])
        count = len(asked.predict.inputs) * math.prod(sizes)
        num_json += 0 if wanted.is_binary else count
        num_binary += count if wanted.is_binary else 0
        if num_json > MAX_ENTRIES or 4 * num_binary > max_response_bytes:
            limit = f"{max_response_bytes} bytes" if wanted.is_binary else f"{MAX_ENTRIES} numbers as JSON"
            hint = "" if wanted.is_binary else ", or set its parameter binary_data"
            raise TooLarge.about(
                f"outputs[{index}]",
                f"an answer may hold at most {limit}, {wanted.spec.name} alone has {count} numbers; ask for fewer "
                f"outputs or sequences at a time{hint}",
            )
    return num_json + num_binary


def render_answer(model: ServedModel, asked: Asked, answers: list[Answer]) -> Response:
    """The answer on the wire.

    Raises:
        Invalid: the model overflows on a sequence.
    """
    check_finite(answers, asked.predict.field)
    arrays = _collect(model, asked, answers)
    rendered = [
        render_tensor(wanted.spec.name, arrays[wanted.spec.name], is_binary=wanted.is_binary)
        for wanted in asked.outputs
    ]
    document: dict[str, Any] = {
        "model_name": model.name,
        "model_version": str(model.version),
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {"warnings": " ".join(model.manifest.warnings)} if model.manifest.warnings else {},
        "outputs": [entry for entry, _ in rendered],
    }
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(wanted.is_binary for wanted in asked.outputs):
        return Response(text, media_type=JSON)
    body = b"".join([text, *(part for _, part in rendered)])
    return Response(body, headers={HEADER: str(len(text))}, media_type=BINARY)


def _collect(model: ServedModel, asked: Asked, answers: list[Answer]) -> dict[str, NDArray[Any]]:
    names = {wanted.spec.name for wanted in asked.outputs}
    arrays: dict[str, NDArray[Any]] = {}
    if LOGITS in names:
        whole = model.manifest.task == "classify_sequence"
        logits = [logits_of(answer) for answer in answers]
        arrays[LOGITS] = np.concatenate(logits) if whole else _pad(logits)
    for name in names & asked.captures:
        arrays[name] = _pad([fetch(answer.captures[name]) for answer in answers])
    if asked.predict.attention is not None:
        weighed = compute_arrays(model.engine.runtime.weighing, model.manifest.layers, asked.predict, answers)
        for place, layer in enumerate(asked.predict.attention.layers):
            arrays[f"layers.{layer}.{WEIGHTS}"] = _pad([by_name[WEIGHTS][place] for by_name in weighed])
    return arrays


def _pad(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack arrays of different sizes, with zeros where there is nothing."""
    stacked = np.zeros((len(parts), *np.max([part.shape for part in parts], axis=0)), np.float32)
    for row, part in zip(stacked, parts, strict=True):
        row[tuple(map(slice, part.shape))] = part
    return stacked
