"""Maps: weights, scores and what is made of them, written block by block to where they are answered.

No more is in memory than the answer, one block of rows and, where heads or layers are put together, the maps of a few
heads.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.attended import Attended
from attnserve.service.axes import Axis, column_axis, row_axis
from attnserve.service.diagnostics import diagnose
from attnserve.service.heads import Heads
from attnserve.service.layout import INDICES, KEPT_MASS, num_kept
from attnserve.weighing import WeightRows

Array = NDArray[Any]

# Numbers of the maps that are put together at once, 16 MB.
MAX_JOINED = 1 << 22


def compute_maps(attended: Attended) -> dict[str, Array]:
    """The tensors of `layout.py` for the quantities that are maps, in float32."""
    question = attended.question
    heads = Heads(question)
    rows = row_axis(question, attended.index)
    columns = column_axis(question, attended.index, attended.length)
    if question.quantity == "received":
        rows = Axis(steps=rows.steps, labels=rows.labels[:1])
    writer = Writer(attended, heads.num_targets, rows, columns)
    at_once = max(1, MAX_JOINED // (rows.size * columns.size))

    def compute(layer: int, some: list[int]) -> Array:
        return _compute_whole(attended, layer, some, rows, columns)

    if heads.is_reduced:
        writer.put(slice(0, heads.num_targets), slice(0, rows.size), heads.fold(compute, at_once))
    elif question.quantity == "received" or rows.group is not None:
        for layer, members in heads.by_layer.items():
            place = heads.targets(layer).start
            for start in range(0, len(members), at_once):
                some = members[start : start + at_once]
                writer.put(slice(place + start, place + start + len(some)), slice(0, rows.size), compute(layer, some))
    else:
        for layer, members in heads.by_layer.items():
            for block in attended.weigh(layer, members, with_scores=_needs_scores(attended)):
                writer.put_block(heads.targets(layer), block, _values(attended, layer, members, block))
    arrays = writer.arrays
    if question.quantity == "received" or question.reduce.queries != "none":
        arrays = {name: array[:, 0] for name, array in arrays.items()}
    return {name: heads.expand(array) for name, array in arrays.items()}


class Writer:
    """The arrays of maps [num_targets, G, ...] while they are filled: whole rows, or their largest entries.

    Args:
        attended: the sequence.
        num_targets: maps.
        rows: G of them.
        columns: of the maps before they are cut down.
    """

    def __init__(self, attended: Attended, num_targets: int, rows: Axis, columns: Axis) -> None:
        question = attended.question
        self._name, self._columns, self._num_keys = question.quantity, columns, attended.length
        self._min_weight = question.min_weight
        # No score is not a score of 0.
        self._fill = np.nan if question.quantity == "scores" else 0.0
        shape = (num_targets, rows.size)
        self._is_sparse = question.is_sparse
        if not self._is_sparse:
            self.arrays = {self._name: np.full((*shape, columns.size), self._fill, np.float32)}
            return
        self._num_kept = num_kept(question, columns.size)
        self.arrays = {
            self._name: np.zeros((*shape, self._num_kept), np.float32),
            INDICES: np.full((*shape, self._num_kept), -1, np.int32),
            KEPT_MASS: np.full(shape, np.nan, np.float32),
        }

    def put_block(self, targets: slice, block: WeightRows, values: Array) -> None:
        """Values [H, Q, C] of a block, whose rows are rows of the maps."""
        if self._columns.is_all and not self._is_sparse:
            self.arrays[self._name][targets, block.rows, block.columns] = values
        else:
            gathered = self._columns.gather_columns(values, block.columns, self._num_keys, self._fill)
            self.put(targets, block.rows, gathered)

    def put(self, targets: slice, rows: slice, values: Array) -> None:
        """Values [H, rows, columns]."""
        if not self._is_sparse:
            self.arrays[self._name][targets, rows] = values
            return
        kept, places = keep_largest(values, self._num_kept, self._min_weight)
        total = values.sum(2)
        self.arrays[self._name][targets, rows] = kept
        self.arrays[INDICES][targets, rows] = np.where(kept > 0, self._columns.labels[places], -1)
        with np.errstate(invalid="ignore"):  # A row of zeros has nothing to keep.
            self.arrays[KEPT_MASS][targets, rows] = kept.sum(2) / total


def keep_largest(values: Array, num_kept: int, min_weight: float) -> tuple[Array, NDArray[np.int64]]:
    """The largest entries of every row, largest first and 0 below `min_weight`, and their columns: [..., num_kept]."""
    places = np.argpartition(-values, num_kept - 1, axis=-1)[..., :num_kept]
    # Of equal ones the first column comes first.
    places.sort(axis=-1)
    found = np.take_along_axis(values, places, -1)
    order = np.argsort(-found, axis=-1, kind="stable")
    found, places = (np.take_along_axis(array, order, -1) for array in (found, places))
    return np.where(found >= min_weight, found, 0), places


def _compute_whole(attended: Attended, layer: int, heads: list[int], rows: Axis, columns: Axis) -> Array:
    """[H, G, columns] of some heads of a layer, rows put together."""
    question = attended.question
    fill = np.nan if question.quantity == "scores" else 0.0
    if question.quantity == "received":
        found = diagnose(attended.weigh(layer, heads), ("received",), len(heads), attended.about)["received"]
        return columns.gather_columns(found[:, None], slice(0, attended.length), attended.length, fill)
    whole = np.full((len(heads), rows.size, columns.size), fill, np.float32)
    for block in attended.weigh(layer, heads, with_scores=_needs_scores(attended)):
        values = _values(attended, layer, heads, block)
        gathered = columns.gather_columns(values, block.columns, attended.length, fill)
        rows.add_rows(whole, gathered, block.rows)
    return whole


def _needs_scores(attended: Attended) -> bool:
    return attended.question.quantity in ("scores", "signed")


def _values(attended: Attended, layer: int, heads: list[int], block: WeightRows) -> Array:
    """What is asked for, [H, Q, C], of the keys of a block."""
    quantity = attended.question.quantity
    if quantity == "weighted":
        norms = attended.capture(layer, "value_norm")[block.columns][:, heads]
        return block.weights * norms.T[:, None].astype(np.float32)
    if quantity == "weights":
        return block.weights
    assert block.scores is not None
    if quantity == "signed":
        # Not `copysign`: a weight of 0 has no sign.
        return np.where(block.scores < 0, 0 - block.weights, block.weights)
    keys = np.arange(block.columns.start, block.columns.stop)
    seen = (keys >= block.first_key[:, None]) & (keys <= block.last_key[:, None])
    return np.where(seen, block.scores, np.nan)
