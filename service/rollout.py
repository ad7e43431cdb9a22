"""Rollout: what reached a step from every other through all layers, if attention were all there is.

Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", arXiv 2005.00928, in the form of rows: for Q
steps it takes Q x N numbers and no product of N x N matrices.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.attended import Attended
from attnserve.service.axes import column_axis, row_axis
from attnserve.service.heads import Heads
from attnserve.service.maps import Writer

FUSIONS: dict[str, Callable[..., NDArray[np.float32]]] = {
    "none": np.mean,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
}


def compute_rollout(attended: Attended) -> dict[str, NDArray[Any]]:
    """The tensors of `layout.py` for the quantity rollout."""
    question = attended.question
    rows, columns = row_axis(question, attended.index), column_axis(question, attended.index, attended.length)
    rolled = roll_out(attended)[None]
    gathered = columns.gather_columns(rolled, slice(0, attended.length), attended.length, 0.0)
    whole = np.zeros((1, rows.size, columns.size), np.float32)
    rows.add_rows(whole, gathered, slice(0, len(rows.steps)))
    writer = Writer(attended, 1, rows, columns)
    writer.put(slice(0, 1), slice(0, rows.size), whole)
    reduced = question.reduce.queries != "none"
    return {name: array[0, 0] if reduced else array[0] for name, array in writer.arrays.items()}


def roll_out(attended: Attended) -> NDArray[np.float32]:
    """[Q, N] of the queries asked for: rows of the product of (A + I) / (row sums) over the layers asked for.

    A is the mean, maximum or minimum of the heads asked for.
    """
    question, length = attended.question, attended.length
    fuse = FUSIONS[question.reduce.heads]
    steps = attended.queries
    reached = np.zeros((len(steps), length), np.float32)
    reached[np.arange(len(steps)), steps] = 1
    by_layer = Heads(question).by_layer
    for layer in sorted(by_layer, reverse=True):
        # Rows that nothing comes through need not be computed: all but one in the last layer, if one step is asked for.
        needed = np.flatnonzero(reached.any(axis=0))
        before = np.zeros_like(reached)
        for block in attended.weigh(layer, by_layer[layer], needed):
            fused = fuse(block.weights, axis=0)
            share = reached[:, block.steps] / (fused.sum(1) + 1)
            before[:, block.columns] += share @ fused
            before[:, block.steps] += share
        reached = before
    return reached
