"""`Describing`: statistics of rows of weights, from captured queries and keys, where native kernels add them up.

No weights come out of it: memory grows with the rows, not with rows x keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer
from attnserve.rows import keys_by_head, queries_by_head, visible_keys

PACKAGE = Path(__file__).resolve().parent


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
    """The op AttentionStatistics, which only a library of kernels has.

    Args:
        sessions: of `statistics_file`, by weighting.
    """

    def __init__(self, sessions: Mapping[str, Any]) -> None:
        self._sessions = sessions

    def describe(
        self,
        layer: Layer,
        query: NDArray[Any],
        key: NDArray[Any],
        *,
        steps: NDArray[np.int64],
        heads: Sequence[int],
        ids: NDArray[np.int64] | None = None,
    ) -> RowStatistics:
        """Statistics of rows of weights.

        Args:
            layer: how the layer attends.
            query: [Q, heads of the layer, E], captured rows at `steps`.
            key: [N, key heads, E], the captured rows of the whole sequence.
            steps: [Q] steps of the query rows within the sequence.
            heads: query heads wanted, in the order wanted.
            ids: [N] of tokens, whose repetitions are looked for; None of features.
        """
        first, last = visible_keys(layer, steps, len(key))
        session = self._sessions[layer.weighting]
        feeds = {
            "query": queries_by_head(query, heads),
            "key": keys_by_head(layer, key, heads),
            "token": np.zeros(len(key), np.int64) if ids is None else ids,
            "step": steps,
            "first_key": first,
            "last_key": last,
            **{name: np.array(getattr(layer, name), np.float32) for name in ("scale", "softcap", "epsilon")},
        }
        names = [output.name for output in session.get_outputs()]
        sums = dict(zip(names, session.run(names, feeds), strict=True))
        return RowStatistics(steps=steps, first_key=first, last_key=last, sums=sums)


def statistics_file(weighting: str) -> Path:
    """The graph of AttentionStatistics, which `python -m attnserve.export.describing attnserve` has written."""
    return PACKAGE / f"statistics.{weighting}.onnx"
