"""`Attended`: what one sequence of a request attended to, recomputed from its captures as a question wants it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer
from attnserve.describing import RowStatistics
from attnserve.resident import Captured, fetch
from attnserve.service.extents import About
from attnserve.service.question import Question
from attnserve.weighing import Weighing, WeightRows


# Without a repr: captures are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Attended:
    """One sequence, the question about it, and the captures that answer it."""

    weighing: Weighing
    layers: Sequence[Layer]
    """Of the model."""
    question: Question
    index: int
    """Of the sequence in the request."""
    length: int
    captures: Mapping[str, Captured]
    """By output name, [N, ...] each; where the sessions of `weighing` are."""
    ids: NDArray[np.int64] | None = None
    """[N]; None of features."""

    @property
    def queries(self) -> NDArray[np.int64]:
        """[Q] steps asked for."""
        return self.question.queries[self.index]

    @cached_property
    def about(self) -> About:
        """What measures must know of it."""
        question, chosen = self.question, None
        if question.keys is not None:
            chosen = np.zeros(self.length, np.bool_)
            chosen[question.keys[self.index]] = True
        return About(
            num_keys=self.length,
            ids=self.ids,
            special=question.special[self.index] if question.special else None,
            chosen=chosen,
            exclude_bos=question.exclude_bos,
            exclude_current_token=question.exclude_current_token,
        )

    def find(self, layer: int, kind: str) -> Captured:
        """[N, ...] of one of `CAPTURES`, wherever it is."""
        return self.captures[self.layers[layer].captures[kind]]

    def capture(self, layer: int, kind: str) -> NDArray[Any]:
        """[N, ...] of one of `CAPTURES`, on the host."""
        return fetch(self.find(layer, kind))

    def weigh(
        self, layer: int, heads: Sequence[int], steps: NDArray[np.int64] | None = None, *, with_scores: bool = False
    ) -> Iterator[WeightRows]:
        """Rows of weights, without special tokens if they are to be dropped.

        Args:
            layer: index of the layer.
            heads: of it, in the order wanted.
            steps: rows; None is those asked for.
            with_scores: whether scores are wanted too.
        """
        steps = self.queries if steps is None else steps
        query, key = self._capture_rows(layer, steps)
        blocks = self.weighing.weigh(self.layers[layer], query, key, steps=steps, heads=heads, with_scores=with_scores)
        return map(self._drop_special, blocks)

    @property
    def can_describe(self) -> bool:
        """Whether rows are added up without being written down, and are asked for as they are."""
        return self.weighing.describing is not None and self.question.special_tokens == "keep"

    def describe(self, layer: int, heads: Sequence[int]) -> RowStatistics:
        """What the rows asked for add up to; arguments as `weigh`."""
        describing, steps = self.weighing.describing, self.queries
        assert describing is not None
        query, key = self._capture_rows(layer, steps)
        return describing.describe(
            self.layers[layer], query, key, steps=steps, heads=heads, ids=self.ids, check=self.weighing.check
        )

    def _capture_rows(self, layer: int, steps: NDArray[np.int64]) -> tuple[Captured, Captured]:
        """Queries of `steps`, and all keys."""
        query, key = self.find(layer, "query"), self.find(layer, "key")
        # Most ask for every row, which need not be picked.
        return query if np.array_equal(steps, np.arange(self.length)) else query[steps], key

    def _drop_special(self, block: WeightRows) -> WeightRows:
        if self.question.special_tokens == "keep":
            return block
        weights = block.weights * ~self.question.special[self.index][block.columns]
        if self.question.special_tokens == "drop_renormalise":
            total = weights.sum(2, keepdims=True)
            weights /= np.where(total > 0, total, 1)
        return dataclasses.replace(block, weights=weights)
