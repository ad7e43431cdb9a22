"""Layers, heads and steps: "all", slices as Python has them, and lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.selection import MAX_ENTRIES, parse_indices, parse_pairs, parse_steps

ends = st.none() | st.integers(-12, 12)
strides = st.none() | st.integers(-3, 3).filter(bool)
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)
WRONG = ["", "1", "1:2:3:4", "a:b", " 1:2", "1:2:0", "1:2:-0", "last", "1.0:2", "9999999999:", None, 3, {}, []]


def spell(start, stop, step) -> str:
    parts = [start, stop] if step is None else [start, stop, step]
    return ":".join("" if part is None else str(part) for part in parts)


@settings(deadline=None, derandomize=True)
@given(start=ends, stop=ends, step=strides, lengths=lengths)
def test_slices_are_those_of_python(start, stop, step, lengths):
    text, wanted = spell(start, stop, step), slice(start, stop, step)
    expected = [list(range(length))[wanted] for length in lengths]
    if all(expected):
        steps = parse_steps(text, "queries", lengths)
        assert [one.tolist() for one in steps.per_sequence()] == expected
        assert steps.count == sum(map(len, expected))
        assert parse_indices(text, "layers", lengths[0], "layers").tolist() == expected[0]
    else:
        with pytest.raises(Invalid, match=r"queries: expected a slice with at least one of the \d steps of sequences"):
            parse_steps(text, "queries", lengths)


def test_an_empty_slice_names_the_sequence_that_has_none_of_it():
    with pytest.raises(Invalid, match=r"the 3 steps of sequences\[1\], got the string '3:'"):
        parse_steps("3:", "queries", [5, 3, 4])
    # The shortest one has some of it, a longer one has not.
    with pytest.raises(Invalid, match=r"the 6 steps of sequences\[0\], got the string '1:-3:-1'"):
        parse_steps("1:-3:-1", "queries", [6, 2])


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_selection_of_layers(value):
    with pytest.raises(
        Invalid, match='layers: expected "all", a slice like "2:5", or a list of at least one index, got'
    ):
        parse_indices(value, "layers", 4, "layers")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([99], r"layers\[0\]: expected an integer from -4 to 3 \(4 layers\), got the number 99"),
        ([0, -5], r"layers\[1\]: expected an integer from -4 to 3"),
        ([True], r"layers\[0\]: .* got true"),
        ([1.0], r"layers\[0\]: .* got the number 1.0"),
        ("4:", "layers: expected a slice with at least one of the 4 layers, got the string '4:'"),
    ],
)
def test_wrong_layers_are_named_with_what_there_is(layers, message):
    with pytest.raises(Invalid, match=message):
        parse_indices(layers, "layers", 4, "layers")


def test_pairs_count_from_both_ends():
    pairs = parse_pairs([[0, 1], [-1, -8], [1, 7]], "pairs", (2, 8), ("layer", "head"))
    assert pairs.tolist() == [[0, 1], [1, 0], [1, 7]]
    assert pairs.dtype == np.int64


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], r"pairs: expected a list of at least one \[layer, head\], got an empty list"),
        ("all", r"pairs: expected a list"),
        ([[0, 0], [0]], r"pairs\[1\]: expected \[layer, head\], layer from -2 to 1 and head from -8 to 7, got a list"),
        ([[2, 0]], r"pairs\[0\]: .*, got \[2, 0\]"),
        ([[0, -9]], r"pairs\[0\]: .*, got \[0, -9\]"),
        ([[0, "0"]], r"pairs\[0\]: .*, got a list"),
        ([[0, True]], r"pairs\[0\]: .*, got a list"),
    ],
)
def test_wrong_pairs_are_named_with_what_there_is(pairs, message):
    with pytest.raises(Invalid, match=message):
        parse_pairs(pairs, "pairs", (2, 8), ("layer", "head"))


def test_too_many_pairs_are_counted_not_laid_out():
    with pytest.raises(TooLarge, match=f"expected at most {MAX_ENTRIES} pairs"):
        parse_pairs([[0, 0]] * (MAX_ENTRIES + 1), "pairs", (2, 8), ("layer", "head"))
