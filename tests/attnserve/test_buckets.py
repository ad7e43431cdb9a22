"""Batches padded to a bucket's sizes are packed batches like any other, and answer what the plain ones do."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.buckets import Bucket, find_bucket, pad, round_up
from attnserve.packing import pack
from attnserve.runtime import Runtime

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
MAX_LENGTH = 40
LENGTHS = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=40)


def make_sequences(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 5, length) for length in lengths]


def test_sizes_are_two_per_octave():
    sizes = sorted({round_up(size) for size in range(1, 100)})
    assert sizes == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert all(size <= round_up(size) <= 1.5 * size for size in range(1, 2000))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, num_wanted=st.integers(0, 50))
def test_a_padded_batch_is_a_packed_batch(lengths, num_wanted):
    packed = pack(make_sequences(lengths))
    rows = np.arange(num_wanted) % len(packed.inputs)
    bucket = find_bucket(packed, num_wanted, MAX_LENGTH)
    padded = pad(packed, rows, bucket)
    assert len(padded.packed.lengths) == bucket.num_sequences
    assert padded.packed.slots.shape == (bucket.num_sequences, bucket.num_steps)
    assert bucket.num_steps <= MAX_LENGTH
    assert len(padded.packed.inputs) == bucket.num_rows
    assert len(padded.rows) == bucket.num_wanted
    # Whoever is asked for is where it was.
    np.testing.assert_array_equal(padded.packed.inputs[: len(packed.inputs)], packed.inputs)
    np.testing.assert_array_equal(padded.rows[:num_wanted], rows)
    # What the packer makes of the same sequences, dummies included, but for columns of padding at the end.
    ends = np.cumsum(padded.packed.lengths)
    again = pack(np.split(padded.packed.inputs, ends[:-1]))
    assert again.lengths == padded.packed.lengths
    np.testing.assert_array_equal(again.positions, padded.packed.positions)
    width = again.slots.shape[1]
    np.testing.assert_array_equal(again.slots, padded.packed.slots[:, :width])
    assert (padded.packed.slots[:, width:] == bucket.num_rows).all()


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS)
def test_sizes_are_of_the_series_or_the_longest(lengths):
    bucket = find_bucket(pack(make_sequences(lengths)), 1, MAX_LENGTH)
    assert bucket.num_rows == round_up(bucket.num_rows)
    assert bucket.num_sequences == round_up(bucket.num_sequences)
    assert bucket.num_steps in (round_up(bucket.num_steps), MAX_LENGTH)


def test_a_batch_that_fits_has_no_dummies():
    packed = pack(make_sequences([8, 8, 8, 8]))
    bucket = find_bucket(packed, 4, MAX_LENGTH)
    assert bucket == Bucket(num_rows=32, num_sequences=4, num_steps=8, num_wanted=4)
    np.testing.assert_array_equal(pad(packed, np.array([7, 15, 23, 31]), bucket).packed.slots, packed.slots)


def test_features_are_padded_with_zeros():
    packed = pack([np.ones((3, 2), np.float32), np.ones((2, 2), np.float32)])
    padded = pad(packed, np.array([2, 4]), find_bucket(packed, 2, MAX_LENGTH)).packed
    assert padded.inputs.dtype == np.float32
    assert padded.inputs[:5].all()
    assert not padded.inputs[5:].any()


@pytest.mark.parametrize("lengths", [[1], [5], [3, 1], [7, 2, 2], [1] * 5, [16, 1, 1]], ids=str)
def test_dummies_change_no_answer(lengths):
    runtime = Runtime(BUNDLE, num_threads=1)
    packed = pack(make_sequences([min(length, runtime.manifest.max_length) for length in lengths]))
    rows = np.cumsum(packed.lengths) - 1
    bucket = find_bucket(packed, len(rows), runtime.manifest.max_length)
    padded = pad(packed, rows, bucket)
    plain = runtime.run(packed, rows, ["logits"])["logits"]
    found = runtime.run(padded.packed, padded.rows, ["logits"])["logits"]
    assert len(found) == bucket.num_wanted
    allowed = runtime.manifest.certificate.logits.allowed
    assert np.abs(found[: len(rows)] - plain).max() <= allowed
