"""Answers of the Open Inference Protocol: padded tensors, as JSON or binary."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from attnserve.bundle import LOGITS
from attnserve.service.answer import JSON, check_finite
from attnserve.service.attention import compute_arrays
from attnserve.service.catalogue import ServedModel
from attnserve.service.engine import Answer
from attnserve.service.oip.mapping import WEIGHTS, Asked, optional_outputs, output_spec
from attnserve.service.oip.tensors import HEADER, Request, render_tensor
from attnserve.service.problems import TooLarge
from attnserve.service.selection import MAX_ENTRIES

BINARY = "application/octet-stream"


def check_size(asked: Asked, model: ServedModel, *, max_response_bytes: int) -> None:
    """Refuse an answer that would be too large, before any work.

    Raises:
        TooLarge: names the output, how many numbers it would have, and the limit.
    """
    specs = {spec.name: spec.shape for spec in (output_spec(model.manifest), *optional_outputs(model.manifest))}
    num_steps = max(asked.predict.lengths)
    num_positions = max(len(steps) for steps in asked.predict.positions)
    num_json = num_binary = 0
    for index, output in enumerate(asked.outputs):
        # Of the free sizes the first is the number of sequences, the others are steps.
        _, *sizes = specs[output.name]
        free = num_positions if output.name == LOGITS else num_steps
        count = len(asked.predict.inputs) * math.prod(free if size == -1 else size for size in sizes)
        num_json += 0 if output.is_binary else count
        num_binary += 4 * count if output.is_binary else 0
        if num_json > MAX_ENTRIES or num_binary > max_response_bytes:
            limit = f"{max_response_bytes} bytes" if output.is_binary else f"{MAX_ENTRIES} numbers as JSON"
            hint = "" if output.is_binary else ", or set its parameter binary_data"
            raise TooLarge.about(
                f"outputs[{index}]",
                f"an answer may hold at most {limit}, {output.name} alone has {count} numbers; ask for fewer outputs "
                f"or sequences at a time{hint}",
            )


def render_answer(model: ServedModel, request: Request, asked: Asked, answers: list[Answer]) -> Response:
    """The answer on the wire.

    Raises:
        Invalid: the model overflows on a sequence.
    """
    check_finite(answers)
    arrays = _collect(model, asked, answers)
    entries, parts = [], []
    for output in asked.outputs:
        entry, part = render_tensor(output.name, arrays[output.name], is_binary=output.is_binary)
        entries.append(entry)
        parts.append(part)
    document: dict[str, Any] = {
        "model_name": model.name,
        "model_version": str(model.version),
        **({} if request.id is None else {"id": request.id}),
        "parameters": {"warnings": " ".join(model.manifest.warnings)} if model.manifest.warnings else {},
        "outputs": entries,
    }
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(output.is_binary for output in asked.outputs):
        return Response(text, media_type=JSON)
    return Response(b"".join([text, *parts]), headers={HEADER: str(len(text))}, media_type=BINARY)


def _collect(model: ServedModel, asked: Asked, answers: list[Answer]) -> dict[str, NDArray[Any]]:
    names = {output.name for output in asked.outputs}
    arrays: dict[str, NDArray[Any]] = {}
    if LOGITS in names:
        whole = model.manifest.task == "classify_sequence"
        logits = [answer.logits for answer in answers]
        arrays[LOGITS] = np.concatenate(logits) if whole else _pad(logits, 1)
    for name in asked.captures:
        arrays[name] = _pad([answer.captures[name] for answer in answers], 1)
    if asked.predict.attention is not None:
        weighed = compute_arrays(model.engine.runtime, asked.predict, answers)
        for place, layer in enumerate(asked.predict.attention.layers):
            # [heads, n, n] of each sequence.
            maps = [by_name[WEIGHTS][place].transpose(1, 2, 0) for by_name in weighed]
            arrays[f"layers.{layer}.{WEIGHTS}"] = _pad(maps, 2).transpose(0, 3, 1, 2)
    return arrays


def _pad(parts: Sequence[NDArray[Any]], num_axes: int) -> NDArray[Any]:
    """Stack arrays whose first axes differ in size, with zeros where there is nothing."""
    sizes = np.max([part.shape[:num_axes] for part in parts], axis=0)
    stacked = np.zeros((len(parts), *sizes, *parts[0].shape[num_axes:]), np.float32)
    for row, part in zip(stacked, parts, strict=True):
        row[tuple(slice(size) for size in part.shape[:num_axes])] = part
    return stacked
