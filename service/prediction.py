"""Predictions: logits to the answer's top entries."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.resident import is_finite
from attnserve.service.engine import Answer
from attnserve.service.problems import Invalid

Label = Callable[[int], str | None]

# Logits looked at together, some 40 bytes each: all of a large vocabulary at every position would be gigabytes.
MAX_BLOCK_NUMBERS = 1 << 20
# Rows so short are sorted whole, all at once.
SMALL_SIZE = 128


def check_finite(answers: Sequence[Answer], field: str = "sequences") -> None:
    """Refuse to answer what overflows inside the model, as large features do, soonest in half precision.

    Args:
        answers: one per sequence.
        field: what the client called the sequences.

    Raises:
        Invalid: names the sequence.
    """
    for index, answer in enumerate(answers):
        if not all(map(is_finite, (answer.logits, *answer.captures.values()))):
            message = "expected a sequence to which the model has a finite answer, got one that overflows"
            raise Invalid.about(f"{field}[{index}]", message)


def render_prediction(
    logits: NDArray[np.float32], positions: NDArray[np.int64] | None, top_k: int, label: Label
) -> dict[str, Any]:
    """`{"positions", "top"}` of one sequence; logits and probabilities stay float32, printed in shortest exact form.

    Args:
        logits: [P, W].
        positions: [P] steps they belong to; None if they are the answer to the sequence as a whole.
        top_k: entries per position; ties go to the smaller id.
        label: the name of an id, if it has one.
    """
    block = max(1, MAX_BLOCK_NUMBERS // logits.shape[1])
    parts = (logits[start : start + block] for start in range(0, len(logits), block))
    top = [entries for part in parts for entries in _top_entries(part, top_k, label)]
    return {"positions": None if positions is None else positions.tolist(), "top": top}


def describe_entry(index: int, logit: np.float32, probability: np.float32, label: Label) -> dict[str, Any]:
    """One candidate."""
    return {"id": index, "label": label(index), "probability": probability, "logit": logit}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[P, W], computed in float64."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def _top_entries(logits: NDArray[np.float32], top_k: int, label: Label) -> list[list[dict[str, Any]]]:
    ids, probabilities = top_ids(logits, top_k), softmax(logits)
    return [
        [describe_entry(index, logits[row, index], probabilities[row, index], label) for index in ids[row].tolist()]
        for row in range(len(logits))
    ]


def top_ids(logits: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """[P, top_k] ids by falling logit; ties go to the smaller id."""
    num_rows, size = logits.shape
    if top_k == 1:
        likeliest: NDArray[np.int64] = logits.argmax(axis=1, keepdims=True)
        return likeliest
    if top_k == size or size <= SMALL_SIZE:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    # The k-th largest value bounds the candidates; all ties with it are kept, so that the smaller ids win.
    bound = np.partition(logits, size - top_k, axis=1)[:, size - top_k]
    ids = np.empty((num_rows, top_k), np.int64)
    for row in range(num_rows):
        candidates = np.flatnonzero(logits[row] >= bound[row])
        ids[row] = candidates[np.argsort(-logits[row, candidates], kind="stable")[:top_k]]
    return ids
