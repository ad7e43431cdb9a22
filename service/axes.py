"""Axes of a map: which steps its rows and columns are, and which of them are put together."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.question import Question

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Axis:
    """S steps of a sequence, in G groups that are sums of their steps times a factor; or S groups of one step each."""

    steps: NDArray[np.int64]
    """[S] absolute; may repeat."""
    labels: NDArray[np.int64]
    """[G] what each group is called: its step, or the number of its word."""
    group: NDArray[np.int64] | None = None
    """[S] group of each step; None if each is its own."""
    factor: NDArray[np.float32] | None = None
    """[S]; None is 1."""
    is_all: bool = False
    """Whether it is simply every step of the sequence."""

    @property
    def size(self) -> int:
        """G"""
        return len(self.labels)

    def gather_columns(self, values: Array, columns: slice, num_keys: int, fill: float) -> Array:
        """[H, Q, G] of values [H, Q, C] at these columns of `num_keys`; elsewhere they are `fill`."""
        full = np.full((*values.shape[:2], num_keys), fill, np.float32)
        full[:, :, columns] = values
        if self.is_all:
            return full
        picked: Array = full[:, :, self.steps]
        if self.group is None:
            return picked
        order = np.argsort(self.group, kind="stable")
        starts = np.searchsorted(self.group[order], np.arange(self.size))
        summed: Array = np.add.reduceat(picked[:, :, order], starts, axis=2)
        return summed

    def add_rows(self, result: Array, values: Array, rows: slice) -> None:
        """Put values [H, Q, G'] of some of the steps to where they belong in `result` [H, G, G']."""
        if self.group is None:
            result[:, rows] = values
            return
        group = self.group[rows]
        order = np.argsort(group, kind="stable")
        present, starts = np.unique(group[order], return_index=True)
        scaled = values if self.factor is None else values * self.factor[rows][:, None]
        result[:, present] += np.add.reduceat(scaled[:, order], starts, axis=1)


def row_axis(question: Question, index: int) -> Axis:
    """Rows of the maps of a sequence: queries, words of queries, or all of them in one."""
    steps = question.queries[index]
    group = labels = None
    factor = np.ones(len(steps), np.float32)
    if question.words is not None:
        labels, group = _number(question.words[index].of_step[steps])
        # A word looks where its tokens look on average.
        factor /= np.bincount(group)[group]
    if question.reduce.queries != "none":
        num_rows = len(steps) if labels is None else len(labels)
        group, labels = np.zeros_like(steps), np.zeros(1, np.int64)
        if question.reduce.queries == "mean":
            factor /= num_rows
    if labels is None:
        return Axis(steps=steps, labels=steps)
    return Axis(steps=steps, labels=labels, group=group, factor=factor)


def column_axis(question: Question, index: int, num_keys: int) -> Axis:
    """Columns of the maps of a sequence: keys, or words of keys."""
    steps = np.arange(num_keys) if question.keys is None else question.keys[index]
    if question.words is None:
        return Axis(steps=steps, labels=steps, is_all=question.keys is None)
    # A word is looked at as much as its tokens are together.
    labels, group = _number(question.words[index].of_step[steps])
    return Axis(steps=steps, labels=labels, group=group)


def _number(names: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct names by first appearance, and the number of each."""
    distinct, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distinct[order], np.argsort(order)[inverse]
