"""Packing: sequences to the feeds of one run, and back. The only maker of `slots`.

A batch is the concatenation of its sequences (T rows). `slots [B, N]` holds the packed row of every (sequence, step)
and T where there is none, so that no layer but attention ever sees padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch in packed form: T rows, B sequences, N steps of the longest."""

    inputs: NDArray[Any]
    """[T] ids (int64) or [T, F] feature vectors (float32) of all sequences, one after the other."""
    positions: NDArray[np.int64]
    """[T] step of each row within its sequence."""
    slots: NDArray[np.int64]
    """[B, N] packed row of every (sequence, step); T where there is none: one ascending run, then T only."""
    lengths: list[int]
    """Steps of each sequence."""

    @property
    def starts(self) -> list[int]:
        """Packed row of each sequence's first step."""
        return [int(row) for row in self.slots[:, 0]]


class Empty(Protocol):
    """`numpy.empty`, or what does the same with other memory."""

    def __call__(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose numbers are yet to be written."""


def add_leading_row(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Feature vectors [n, F] with the row of zeros before them that the model fills: [n + 1, F]."""
    return np.concatenate([np.zeros_like(features, shape=(1, features.shape[1])), features])


def pack(sequences: Sequence[NDArray[Any]], empty: Empty = np.empty) -> Packed:
    """Pack sequences of at least one step each, [n] ids or [n, F] feature vectors, in the order given.

    Args:
        sequences: at least one.
        empty: makes the array that several are put together in.
    """
    assert sequences, "a batch has at least one sequence"
    if len(sequences) == 1:
        return _pack_one(sequences[0])
    lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
    assert lengths.min() > 0, "a sequence has at least one step"
    ends = np.cumsum(lengths)
    num_rows = int(ends[-1])
    starts = ends - lengths
    step = np.arange(int(lengths.max()))
    slots = np.where(step < lengths[:, None], starts[:, None] + step, num_rows)
    first = sequences[0]
    inputs = empty((num_rows, *first.shape[1:]), np.int64 if first.ndim == 1 else np.float32)
    np.concatenate(sequences, out=inputs)
    return Packed(
        inputs=inputs,
        positions=np.arange(num_rows) - np.repeat(starts, lengths),
        slots=slots,
        lengths=lengths.tolist(),
    )


def _pack_one(sequence: NDArray[Any]) -> Packed:
    """What `pack` does, in a fifth of the time: a short sequence alone takes as long to pack as to embed."""
    length = len(sequence)
    assert length > 0, "a sequence has at least one step"
    positions = np.arange(length)
    return Packed(
        inputs=sequence.astype(np.int64 if sequence.ndim == 1 else np.float32, copy=False),
        positions=positions,
        slots=positions[None],
        lengths=[length],
    )
