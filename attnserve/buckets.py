"""Buckets: batches are padded to few sizes, so that what was recorded of one run, a CUDA graph, fits many batches.

Sizes are padded by dummy sequences: to the graph they are sequences like any other, and that a sequence's answer does
not depend on its batch-mates is a law, tested for every variant. Nothing in a graph has to know of padding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.packing import Packed


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Sizes of a graph's inputs."""

    num_rows: int
    """T"""
    num_sequences: int
    """B"""
    num_steps: int
    """N"""
    num_wanted: int
    """R: rows whose logits are wanted."""

    @property
    def num_cells(self) -> int:
        """Score cells of one head that function bodies compute: B x N^2."""
        return self.num_sequences * self.num_steps**2


@dataclass(frozen=True, kw_only=True)
class Padded:
    """A batch of a bucket's sizes. What was asked comes first in every output, and what comes after is nobody's."""

    packed: Packed
    rows: NDArray[np.int64]
    """[R]"""


def round_up(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ...: at most half more than `size`, and two sizes per octave."""
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power


def find_bucket(packed: Packed, num_wanted: int, max_steps: int) -> Bucket:
    """The smallest bucket that holds a batch, with the dummy sequences that fill it.

    Every dummy has at least one step, as packed sequences do, and no more steps than N.

    Args:
        packed: the batch.
        num_wanted: rows whose logits are wanted.
        max_steps: most that the model takes, a leading row included.
    """
    num_rows, num_sequences = len(packed.inputs), len(packed.lengths)
    num_steps = min(round_up(packed.slots.shape[1]), max_steps)
    wanted = round_up(max(1, num_wanted))
    filled, sequences = round_up(num_rows), round_up(num_sequences)
    if (filled, sequences) != (num_rows, num_sequences):
        sequences = round_up(num_sequences + 1)
        filled = round_up(num_rows + sequences - num_sequences)
        # Too many rows for so few dummies. With every dummy there is room for N more rows, and at most half as many
        # come with it as there are, so this ends.
        while filled - num_rows > (sequences - num_sequences) * num_steps:
            sequences = round_up(sequences + 1)
            filled = round_up(num_rows + sequences - num_sequences)
    return Bucket(num_rows=filled, num_sequences=sequences, num_steps=num_steps, num_wanted=wanted)


def pad(packed: Packed, rows: NDArray[np.int64], bucket: Bucket) -> Padded:
    """Fill a batch up to the sizes of its bucket.

    Args:
        packed: the batch, whose rows and sequences stay where they are.
        rows: [R] packed rows whose logits are wanted; the last row of all is wanted as often as it takes.
        bucket: what `find_bucket` says of it.
    """
    num_rows, num_sequences = len(packed.inputs), len(packed.lengths)
    lengths = _share(bucket.num_rows - num_rows, bucket.num_sequences - num_sequences)
    inputs = np.zeros((bucket.num_rows, *packed.inputs.shape[1:]), packed.inputs.dtype)
    inputs[:num_rows] = packed.inputs
    positions = np.empty(bucket.num_rows, np.int64)
    positions[:num_rows] = packed.positions
    slots = np.full((bucket.num_sequences, bucket.num_steps), bucket.num_rows)
    slots[:num_sequences, : packed.slots.shape[1]] = np.where(packed.slots < num_rows, packed.slots, bucket.num_rows)
    start = num_rows
    for sequence, length in enumerate(lengths, num_sequences):
        positions[start : start + length] = np.arange(length)
        slots[sequence, :length] = np.arange(start, start + length)
        start += length
    wanted = np.full(bucket.num_wanted, bucket.num_rows - 1)
    wanted[: len(rows)] = rows
    return Padded(
        packed=Packed(inputs=inputs, positions=positions, slots=slots, lengths=[*packed.lengths, *lengths]), rows=wanted
    )


def _share(num_rows: int, num_dummies: int) -> list[int]:
    """Steps of each dummy: as even as can be, so that none is longer than it must be."""
    if not num_dummies:
        assert not num_rows, "rows without a sequence to belong to"
        return []
    least, rest = divmod(num_rows, num_dummies)
    return [least + (number < rest) for number in range(num_dummies)]
