"""Predictions: logits to the answer's top entries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Logits looked at together, some 40 bytes each: all of a large vocabulary at every position would be gigabytes.
MAX_BLOCK_NUMBERS = 1 << 20


def render_prediction(
    logits: NDArray[np.float32], positions: NDArray[np.int64], top_k: int, labels: Sequence[str] | None
) -> dict[str, Any]:
    """`{"positions", "top"}` of one sequence; logits and probabilities stay float32, printed in shortest exact form.

    Args:
        logits: [P, W].
        positions: [P] steps they belong to.
        top_k: entries per position; ties go to the smaller id.
        labels: a name per id, or None.
    """
    block = max(1, MAX_BLOCK_NUMBERS // logits.shape[1])
    parts = (logits[start : start + block] for start in range(0, len(logits), block))
    top = [entries for part in parts for entries in _top_entries(part, top_k, labels)]
    return {"positions": positions.tolist(), "top": top}


def _top_entries(logits: NDArray[np.float32], top_k: int, labels: Sequence[str] | None) -> list[list[dict[str, Any]]]:
    ids = top_ids(logits, top_k)
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return [
        [
            {
                "id": index,
                "label": None if labels is None else labels[index],
                "probability": probabilities[row, index],
                "logit": logits[row, index],
            }
            for index in ids[row].tolist()
        ]
        for row in range(len(logits))
    ]


def top_ids(logits: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """[P, top_k] ids by falling logit; ties go to the smaller id."""
    num_rows, size = logits.shape
    if top_k == size or size <= 1024:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    # The k-th largest value bounds the candidates; all ties with it are kept, so that the smaller ids win.
    bound = np.partition(logits, size - top_k, axis=1)[:, size - top_k]
    ids = np.empty((num_rows, top_k), np.int64)
    for row in range(num_rows):
        candidates = np.flatnonzero(logits[row] >= bound[row])
        ids[row] = candidates[np.argsort(-logits[row, candidates], kind="stable")[:top_k]]
    return ids
