"""Top entries: the likeliest ids of an answer, chosen from its logits, or by a graph that has them as outputs.

A graph's are `TOP` of `attnserve.bundle`: then nobody needs the logits, of which a large vocabulary has many. The
probability of an entry is exp(logit - largest) / normaliser.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import LOGITS, NORMALISER, TOP_IDS, TOP_LOGITS

# Logits looked at together, some 40 bytes each: all of a large vocabulary at every position would be gigabytes.
MAX_BLOCK_NUMBERS = 1 << 20
# Rows so short are sorted whole, all at once.
SMALL_SIZE = 128
# Relative, of a graph's normaliser from that of its logits in float64: float32 exponentials may be off by some units in
# the last place.
MAX_NORMALISER_ERROR = 4e-6


# Without a repr: what a model says to user data is user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Top:
    """The K likeliest entries of R answers."""

    ids: NDArray[np.int64]
    """[R, K] by falling logit; of equal ones the smaller id comes first."""
    logits: NDArray[np.floating[Any]]
    """[R, K] as they were."""
    normaliser: NDArray[np.floating[Any]]
    """[R] sum over all ids of exp(logit - largest logit); a graph's is NaN where a logit is not finite."""

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """[R, K] among all ids, computed in float64."""
        wide = self.logits.astype(np.float64)
        found: NDArray[np.float32] = (np.exp(wide - wide[:, :1]) / self.normaliser[:, None]).astype(np.float32)
        return found

    def cut(self, top_k: int) -> "Top":
        """The first `top_k` of them."""
        return Top(ids=self.ids[:, :top_k], logits=self.logits[:, :top_k], normaliser=self.normaliser)

    def rows(self, start: int, stop: int) -> "Top":
        """Those of some answers."""
        part = slice(start, stop)
        return Top(ids=self.ids[part], logits=self.logits[part], normaliser=self.normaliser[part])


def suffices(num_chosen: int | None, num_wanted: int | None) -> bool:
    """Whether a graph chooses as many entries as are wanted; None of them is none chosen, or all logits wanted."""
    return num_chosen is not None and num_wanted is not None and num_wanted <= num_chosen


def read_top(outputs: Mapping[str, NDArray[Any]]) -> Top:
    """What a graph has chosen, from its outputs."""
    return Top(ids=outputs[TOP_IDS], logits=outputs[TOP_LOGITS], normaliser=outputs[NORMALISER])


def choose_top(logits: NDArray[Any], top_k: int) -> Top:
    """The likeliest `top_k` entries of logits [R, W]."""
    block = max(1, MAX_BLOCK_NUMBERS // max(1, logits.shape[1]))
    starts = range(0, max(1, len(logits)), block)
    parts = [_choose(logits[start : start + block], top_k) for start in starts]
    if len(parts) == 1:
        return parts[0]
    return Top(
        ids=np.concatenate([part.ids for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        normaliser=np.concatenate([part.normaliser for part in parts]),
    )


def top_ids(logits: NDArray[Any], top_k: int) -> NDArray[np.int64]:
    """[R, top_k] ids by falling logit; ties go to the smaller id."""
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


def normalise(logits: NDArray[Any]) -> NDArray[np.float64]:
    """[R] what softmax of logits [R, W] divides by: the sum of exp(logit - largest), in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.exp(wide, out=wide).sum(axis=1)
    return total


def count_wrong(outputs: Mapping[str, NDArray[Any]], *, settles_ties: bool) -> int:
    """Rows whose top entries, as a graph has chosen them, are not those of its logits of the same run.

    Values are compared bit by bit, and the normaliser within `MAX_NORMALISER_ERROR`.

    Args:
        outputs: of the graph: `logits` and `TOP`.
        settles_ties: whether ids must be those of `top_ids` even where logits are equal. ONNX says so; not every reader
            does so.
    """
    logits, found = outputs[LOGITS], read_top(outputs)
    shape = (len(logits), found.ids.shape[-1])
    if (found.ids.shape, found.logits.shape, found.normaliser.shape) != (shape, shape, shape[:1]):
        return len(logits)
    expected = choose_top(logits, shape[1])
    in_range = (found.ids >= 0) & (found.ids < logits.shape[1])
    ids = np.where(in_range, found.ids, 0)
    ascending = np.sort(ids, axis=1)
    are_right = in_range.all(1) & (ascending[:, 1:] != ascending[:, :-1]).all(1)
    are_right &= (np.take_along_axis(logits, ids, 1) == found.logits).all(1)
    are_right &= (found.logits == expected.logits).all(1)
    if settles_ties:
        are_right &= (found.ids == expected.ids).all(1)
    # Written so that NaN is wrong.
    are_right &= np.abs(found.normaliser / expected.normaliser - 1) <= MAX_NORMALISER_ERROR
    return int((~are_right).sum())


def measure_top(found: Top, expected: NDArray[np.float64]) -> float:
    """How far top entries are from those of the true logits [R, W]; infinite where they are none of them.

    No more than the logits they are chosen from, which are not there to be compared: the k-th largest of some numbers
    moves no further than the number that moves furthest, and the log of a normaliser no further than twice that.
    """
    num_rows, top_k = found.ids.shape
    if num_rows != len(expected) or top_k > expected.shape[1]:
        return float("inf")
    if not ((found.ids >= 0) & (found.ids < expected.shape[1])).all():
        return float("inf")
    truth = choose_top(expected, top_k)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_normaliser = (np.abs(np.log(found.normaliser / truth.normaliser)) - MAX_NORMALISER_ERROR) / 2
    by_entry = [found.logits - truth.logits, found.logits - np.take_along_axis(expected, found.ids, 1)]
    # numpy's maximum is NaN where one of them is, Python's may not be.
    largest = float(np.max([np.abs(one).max(initial=0.0) for one in (*by_entry, by_normaliser.clip(min=0))]))
    return largest if np.isfinite(largest) else float("inf")


def _choose(logits: NDArray[Any], top_k: int) -> Top:
    ids = top_ids(logits, top_k)
    # Not `take_along_axis`, which takes longer than all else of a small vocabulary.
    chosen = logits[np.arange(len(ids))[:, None], ids]
    return Top(ids=ids, logits=chosen, normaliser=normalise(logits))
