"""`Describing`: statistics of rows of weights, from captured queries and keys.

One op adds them up, AttentionStatistics. Its kernel never has more than a few rows of weights, so memory grows with the
rows alone; its body has them all, so it is given rows in blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer
from attnserve.resident import Captured, Resident
from attnserve.rows import cut_rows, keys_by_head, part_of, queries_by_head, rows_per_block, visible_keys

PACKAGE = Path(__file__).resolve().parent
STATISTICS_OP = "AttentionStatistics"
# Outputs of the op, in its order: one number per row, and what every key has received of all rows.
ROW_SUMS = ("mass", "entropy", "distance", "sink", "previous", "self", "duplicate", "induction")
RECEIVED = "received"


# Without a repr: captures are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowStatistics:
    """Of one layer, for H heads and Q query steps of one sequence of N; docs/kernels.md has the formulas."""

    steps: NDArray[np.int64]
    """[Q] query steps."""
    first_key: NDArray[np.int64]
    """[Q] first key each row may see."""
    last_key: NDArray[np.int64]
    """[Q] last key each row may see."""
    sums: Mapping[str, NDArray[np.float32]]
    """Outputs of AttentionStatistics by name: `received` [H, N], of all these rows together; others [H, Q]."""


class Describing:
    """The graphs of AttentionStatistics.

    Args:
        sessions: of `statistics_file`, by weighting.
        has_kernels: whether a native library runs the op there; else its function body does.
    """

    def __init__(self, sessions: Mapping[str, Any], *, has_kernels: bool) -> None:
        self._sessions = sessions
        self.has_kernels = has_kernels

    def describe(
        self,
        layer: Layer,
        query: Captured,
        key: Captured,
        *,
        steps: NDArray[np.int64],
        heads: Sequence[int],
        ids: NDArray[np.int64] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> RowStatistics:
        """Statistics of rows of weights.

        Args:
            layer: how the layer attends.
            query: [Q, heads of the layer, E], captured rows at `steps`; residents where the sessions are.
            key: [N, key heads, E], the captured rows of the whole sequence.
            steps: [Q] steps of the query rows within the sequence.
            heads: query heads wanted, in the order wanted.
            ids: [N] of tokens, whose repetitions are looked for; None of features.
            check: called before every run; may raise.
        """
        first, last = visible_keys(layer, steps, len(key))
        queries, keys = queries_by_head(query, heads), keys_by_head(layer, key, heads)
        tokens = np.zeros(len(key), np.int64) if ids is None else ids
        sums = {name: np.zeros((len(heads), len(steps)), np.float32) for name in ROW_SUMS}
        received = np.zeros((len(heads), len(key)), np.float32)
        num_rows = max(1, len(steps))
        if not self.has_kernels:
            num_rows = rows_per_block(max(1, len(heads)) * len(key), is_resident=isinstance(key, Resident))
        # Without heads there is nothing to run for.
        for rows, seen in cut_rows(first, last, num_rows) if len(heads) else ():
            check()
            # One key more, which none of these rows sees: what comes right after it is `induction`, and where it is in
            # the place of key 0 nothing is `sink`.
            needed = slice(max(seen.start - 1, 0), seen.stop)
            feeds = {
                "query": part_of(queries, rows),
                "key": part_of(keys, needed),
                "token": tokens[needed],
                "step": steps[rows] - needed.start,
                "first_key": first[rows] - needed.start,
                "last_key": last[rows] - needed.start,
                **{name: np.array(getattr(layer, name), np.float32) for name in ("scale", "softcap", "epsilon")},
            }
            *of_rows, of_keys = self._sessions[layer.weighting].run([*ROW_SUMS, RECEIVED], feeds)
            for name, array in zip(ROW_SUMS, of_rows, strict=True):
                sums[name][:, rows] = array
            received[:, needed] += of_keys
        return RowStatistics(steps=steps, first_key=first, last_key=last, sums={**sums, RECEIVED: received})


def statistics_file(weighting: str) -> Path:
    """The graph of AttentionStatistics, which `python -m attnserve.export.describing attnserve` has written."""
    return PACKAGE / f"statistics.{weighting}.onnx"
