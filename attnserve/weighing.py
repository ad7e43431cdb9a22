"""`Weighing`: weights recomputed from captured queries and keys, by the weights graphs of a bundle.

Rows go through the graphs in blocks that fit the cache, each with only the keys that one of its rows may see: of a
causal sequence that is half of them. On a device, where captures may stay (`attnserve/resident.py`), blocks are larger.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer, Manifest, normaliser_file, rows_file, weights_file
from attnserve.describing import Describing
from attnserve.resident import Captured, Resident
from attnserve.rows import cut_rows, keys_by_head, part_of, queries_by_head, rows_per_block, visible_keys


@dataclass(frozen=True, kw_only=True)
class WeightRows:
    """Weights of one layer for chosen heads and query steps of one sequence."""

    rows: slice
    """Place of these rows among those asked for."""
    steps: NDArray[np.int64]
    """[Q] query steps."""
    first_key: NDArray[np.int64]
    """[Q] first key each row may see."""
    last_key: NDArray[np.int64]
    """[Q] last key each row may see."""
    columns: slice
    """The C keys that the arrays are of; no row here may see another one."""
    weights: NDArray[np.float32]
    """[H, Q, C]; exactly 0 where a key may not be seen."""
    scores: NDArray[np.float32] | None
    """[H, Q, C] before weighting, those of keys that may not be seen included; None unless asked for."""


class Weighing:
    """The weights graphs of one bundle.

    Args:
        sessions: of the graphs, by path in the bundle, all on the CPU or all on one device. Where `rows_file` of a
            weighting is missing, as in older bundles, its other two graphs do the same in more than twice the time.
        describing: adds rows up without writing them down; None where numpy adds them up in less time.
        check: called before every block of rows; may raise.
    """

    def __init__(
        self,
        sessions: Mapping[str, Any],
        describing: Describing | None = None,
        *,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self.describing = describing
        self.check = check

    def checking(self, check: Callable[[], object]) -> "Weighing":
        """The same graphs, with another `check`."""
        return Weighing(self._sessions, self.describing, check=check)

    def weigh(
        self,
        layer: Layer,
        query: Captured,
        key: Captured,
        *,
        steps: NDArray[np.int64],
        heads: Sequence[int],
        with_scores: bool = False,
    ) -> Iterator[WeightRows]:
        """Recompute weights from captured queries and keys, in blocks of query rows.

        Args:
            layer: how the layer attends.
            query: [Q, heads of the layer, E], captured rows at `steps`; residents where these sessions are.
            key: [N, key heads, E], the captured rows of the whole sequence.
            steps: [Q] steps of the query rows within the sequence.
            heads: query heads wanted, in the order wanted.
            with_scores: whether scores are wanted too.
        """
        # Without heads there are no rows either, and ONNX Runtime reduces empty tensors to a wrong shape.
        if not len(heads):
            return
        first, last = visible_keys(layer, steps, len(key))
        queries, keys = queries_by_head(query, heads), keys_by_head(layer, key, heads)
        block = rows_per_block(len(heads) * len(key), is_resident=isinstance(key, Resident))
        for rows, columns in cut_rows(first, last, block):
            self.check()
            feeds = _feeds(
                layer,
                part_of(queries, rows),
                part_of(keys, columns),
                first[rows] - columns.start,
                last[rows] - columns.start,
            )
            weights, scores = self._run(layer, feeds, with_scores)
            yield WeightRows(
                rows=rows,
                steps=steps[rows],
                first_key=first[rows],
                last_key=last[rows],
                columns=columns,
                weights=weights,
                scores=scores,
            )

    def weigh_all(
        self,
        layer: Layer,
        query: Captured,
        key: Captured,
        *,
        steps: NDArray[np.int64],
        heads: Sequence[int],
    ) -> NDArray[np.float32]:
        """Weights [heads, Q, N] of all rows at once; arguments as `weigh`."""
        weights = np.zeros((len(heads), len(steps), len(key)), np.float32)
        for block in self.weigh(layer, query, key, steps=steps, heads=heads):
            weights[:, block.rows, block.columns] = block.weights
        return weights

    def normalise(
        self,
        layer: Layer,
        query: NDArray[np.float32],
        key: NDArray[np.float32],
        *,
        first: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """What rows are normalised by, [H, Q].

        Args:
            layer: how the layer attends.
            query: [H, Q, E], contiguous.
            key: [H, C, E], contiguous: all keys that one of the rows may see.
            first: [Q] first key that each row may see, counted from the first of these keys.
            last: [Q] and the last.
        """
        feeds = _feeds(layer, query, key, first, last)
        (normaliser,) = self._sessions[normaliser_file(layer.weighting)].run(None, feeds)
        return normaliser  # type: ignore[no-any-return]

    def weigh_part(
        self,
        layer: Layer,
        query: NDArray[np.float32],
        key: NDArray[np.float32],
        normaliser: NDArray[np.float32],
        *,
        first: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Weights [H, Q, C] that rows give to some keys.

        Args:
            layer: how the layer attends.
            query: [H, Q, E], contiguous.
            key: [H, C, E], contiguous: any keys.
            normaliser: [H, Q] of the rows, over all keys that they may see.
            first: as in `normalise`, but it may lie before these keys, or beyond them.
            last: the same.
        """
        feeds = _feeds(layer, query, key, first, last)
        feeds |= {"epsilon": np.array(layer.epsilon, np.float32), "normaliser": normaliser}
        (weights,) = self._sessions[weights_file(layer.weighting)].run(["weights"], feeds)
        return weights  # type: ignore[no-any-return]

    def _run(
        self, layer: Layer, feeds: dict[str, Any], with_scores: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Weights, and scores if wanted, of one block."""
        feeds = {**feeds, "epsilon": np.array(layer.epsilon, np.float32)}
        in_one = None if with_scores else self._sessions.get(rows_file(layer.weighting))
        if in_one is not None:
            (weights,) = in_one.run(["weights"], feeds)
            return weights, None
        normaliser = self._sessions[normaliser_file(layer.weighting)].run(
            None, {name: array for name, array in feeds.items() if name != "epsilon"}
        )
        names = ["weights", "scores"] if with_scores else ["weights"]
        session = self._sessions[weights_file(layer.weighting)]
        weights, *scores = session.run(names, {**feeds, "normaliser": normaliser[0]})
        return weights, scores[0] if scores else None


def open_weighing(
    folder: Path, manifest: Manifest, open_graph: Callable[[Path], Any], describing: Describing | None
) -> Weighing:
    """The weights graphs of a bundle.

    Args:
        folder: the bundle.
        manifest: of it.
        open_graph: opens a graph, each time on the same device.
        describing: as in `Weighing`.
    """
    files = (file(one) for one in manifest.weightings for file in (weights_file, normaliser_file, rows_file))
    return Weighing({file: open_graph(folder / file) for file in files if file in manifest.files}, describing)


def _feeds(layer: Layer, query: Any, key: Any, first: NDArray[np.int64], last: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "query": query,
        "key": key,
        "first_key": first,
        "last": last,
        "scale": np.array(layer.scale, np.float32),
        "softcap": np.array(layer.softcap, np.float32),
    }
