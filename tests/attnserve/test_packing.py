import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.packing import add_leading_row, pack

ids = st.integers(0, 2**40)
batches = st.lists(st.lists(ids, min_size=1, max_size=20), min_size=1, max_size=8)


def arrays(sequences: list[list[int]]) -> list[np.ndarray]:
    return [np.asarray(sequence, np.int64) for sequence in sequences]


def test_a_batch_by_hand() -> None:
    packed = pack(arrays([[7, 8, 9], [5], [6, 4]]))
    assert packed.inputs.tolist() == [7, 8, 9, 5, 6, 4]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.slots.tolist() == [[0, 1, 2], [3, 6, 6], [4, 5, 6]]
    assert packed.lengths == [3, 1, 2]
    assert packed.starts == [0, 3, 4]


def test_the_smallest_batch() -> None:
    packed = pack(arrays([[3]]))
    assert (packed.inputs.tolist(), packed.positions.tolist(), packed.slots.tolist()) == ([3], [0], [[0]])


@settings(deadline=None, derandomize=True)
@given(batches)
def test_every_sequence_is_found_again(sequences: list[list[int]]) -> None:
    packed = pack(arrays(sequences))
    num_rows = sum(map(len, sequences))
    assert packed.slots.shape == (len(sequences), max(map(len, sequences)))
    for sequence, slots, start in zip(sequences, packed.slots, packed.starts, strict=True):
        run, rest = slots[: len(sequence)], slots[len(sequence) :]
        # One ascending run, then T only: never -1, which would wrap around to somebody else's row.
        assert run.tolist() == list(range(start, start + len(sequence)))
        assert (rest == num_rows).all()
        assert packed.inputs[run].tolist() == sequence
        assert packed.positions[run].tolist() == list(range(len(sequence)))
    assert sorted(packed.slots[packed.slots < num_rows].tolist()) == list(range(num_rows))


@settings(deadline=None, derandomize=True)
@given(batches)
def test_feeds_are_int64(sequences: list[list[int]]) -> None:
    # Narrow ids come from clients' files; the graph's inputs are int64 and nothing else.
    packed = pack([np.asarray([token % 100 for token in sequence], np.int8) for sequence in sequences])
    assert {packed.inputs.dtype, packed.positions.dtype, packed.slots.dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]], ids=str)
def test_nothing_to_pack_is_a_fault_of_the_caller(sequences: list[list[int]]) -> None:
    with pytest.raises(AssertionError, match="at least one"):
        pack(arrays(sequences))


def test_features_are_packed_row_by_row() -> None:
    random = np.random.default_rng(0)
    sequences = [random.normal(size=(length, 3)) for length in (2, 1, 3)]
    packed = pack(sequences)
    assert packed.inputs.dtype == np.float32
    np.testing.assert_array_equal(packed.inputs, np.concatenate(sequences).astype(np.float32))
    # All but the inputs is that of ids.
    ids = pack(arrays([[1, 1], [1], [1, 1, 1]]))
    for name in ("positions", "slots", "lengths", "starts"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(ids, name))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_leading_row_is_one_of_zeros(length: int) -> None:
    features = np.arange(1, 1 + 2 * length, dtype=np.float32).reshape(length, 2)
    led = add_leading_row(features)
    assert led.dtype == np.float32
    assert led.tolist() == [[0, 0], *features.tolist()]
