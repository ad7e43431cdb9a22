"""The likeliest entries of logits, and how those that a graph has chosen are held to them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attnserve import top
from attnserve.bundle import LOGITS, NORMALISER, TOP, TOP_IDS, TOP_LOGITS
from attnserve.top import Top, choose_top, count_wrong, measure_top, suffices, top_ids

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def slowly(logits: np.ndarray, top_k: int) -> list[list[int]]:
    """By falling logit, ties by rising id: Python's sort is stable."""
    return [sorted(range(len(row)), key=lambda index, row=row: -row[index])[:top_k] for row in logits]


@settings(deadline=None, derandomize=True)
@given(
    logits=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=finite), k=st.data()
)
def test_top_ids_of_a_small_vocabulary(logits, k):
    top_k = k.draw(st.integers(1, logits.shape[1]))
    assert top_ids(logits, top_k).tolist() == slowly(logits, top_k)


@pytest.mark.parametrize("top_k", [1, 2, 7, 100, 1999, 2000])
@pytest.mark.parametrize("num_values", [2, 50, 10**6])
def test_top_ids_of_a_large_vocabulary_with_ties(top_k, num_values):
    # A large one is partitioned, not sorted; ties at the edge must still go to the smaller ids.
    logits = np.random.default_rng(0).integers(0, num_values, (3, 2000)).astype(np.float32)
    assert top_ids(logits, top_k).tolist() == slowly(logits, top_k)


def make_logits(num_rows: int = 6, size: int = 300) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_rows, size)).astype(np.float32) * 5


def outputs_of(logits: np.ndarray, top_k: int = 4) -> dict[str, Any]:
    """What a graph should answer."""
    chosen = choose_top(logits, top_k)
    found = {TOP_IDS: chosen.ids, TOP_LOGITS: chosen.logits, NORMALISER: chosen.normaliser.astype(np.float32)}
    return {LOGITS: logits, **found}


def test_probabilities_are_those_of_softmax():
    logits = make_logits()
    chosen = choose_top(logits, 300)
    exponentials = np.exp(logits.astype(np.float64))
    expected = np.take_along_axis(exponentials / exponentials.sum(1, keepdims=True), chosen.ids, 1)
    np.testing.assert_allclose(chosen.probabilities, expected, rtol=1e-6)
    assert chosen.probabilities.dtype == np.float32
    np.testing.assert_array_equal(chosen.cut(3).probabilities, chosen.probabilities[:, :3])
    np.testing.assert_array_equal(chosen.rows(2, 5).probabilities, chosen.probabilities[2:5])


@pytest.mark.parametrize("num_numbers", [1, 700, 10**9])
def test_many_rows_are_looked_at_in_blocks(monkeypatch, num_numbers):
    logits = make_logits()
    expected = choose_top(logits, 7)
    monkeypatch.setattr(top, "MAX_BLOCK_NUMBERS", num_numbers)
    found = choose_top(logits, 7)
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_of_no_rows_nothing_is_chosen():
    chosen = choose_top(np.empty((0, 300), np.float32), 7)
    assert (chosen.ids.shape, chosen.probabilities.shape) == ((0, 7), (0, 7))


@pytest.mark.parametrize(
    ("num_chosen", "num_wanted", "expected"),
    [(3, 1, True), (3, 3, True), (3, 4, False), (3, None, False), (None, 1, False), (None, None, False)],
)
def test_entries_suffice_for_whom_wants_no_more(num_chosen, num_wanted, expected):
    assert suffices(num_chosen, num_wanted) == expected


def test_what_is_right_is_counted_as_right():
    outputs = outputs_of(make_logits())
    assert count_wrong(outputs, settles_ties=True) == 0
    assert count_wrong(outputs_of(make_logits(0)), settles_ties=True) == 0


WRONG = {
    "another id": lambda found: found[TOP_IDS].__setitem__((2, 1), found[TOP_IDS][2, 1] ^ 1),
    "the same id twice": lambda found: (
        found[TOP_IDS].__setitem__((2, 1), found[TOP_IDS][2, 0]),
        found[TOP_LOGITS].__setitem__((2, 1), found[TOP_LOGITS][2, 0]),
    ),
    "an id beyond": lambda found: found[TOP_IDS].__setitem__((2, 3), 300),
    "another order": lambda found: [found[name].__setitem__(2, found[name][2, ::-1]) for name in (TOP_IDS, TOP_LOGITS)],
    "a logit next to it": lambda found: found[TOP_LOGITS].__setitem__((2, 0), np.nextafter(found[TOP_LOGITS][2, 0], 9)),
    "no number": lambda found: found[TOP_LOGITS].__setitem__((2, 0), np.nan),
    "a larger normaliser": lambda found: found[NORMALISER].__setitem__(2, found[NORMALISER][2] * (1 + 1e-5)),
    "no normaliser": lambda found: found[NORMALISER].__setitem__(2, np.nan),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_counted(spoil):
    outputs = outputs_of(make_logits())
    spoil(outputs)
    assert count_wrong(outputs, settles_ties=False) == 1


def test_entries_left_out_are_wrong():
    logits = make_logits()
    found = outputs_of(logits, 5)
    left_out = {**found, TOP_IDS: found[TOP_IDS][:, 1:], TOP_LOGITS: found[TOP_LOGITS][:, 1:]}
    assert count_wrong(left_out, settles_ties=False) == len(logits)


def test_other_shapes_are_wrong():
    outputs = outputs_of(make_logits())
    for name in TOP:
        assert count_wrong({**outputs, name: outputs[name][..., None]}, settles_ties=False) == 6


def test_of_equal_logits_it_may_be_either_where_readers_differ():
    logits = np.round(make_logits())
    outputs = outputs_of(logits)
    tied = np.flatnonzero(logits[0] == outputs[TOP_LOGITS][0, -1])
    outputs[TOP_IDS][0, -1] = tied[-1]
    assert len(tied) > 1
    assert count_wrong(outputs, settles_ties=False) == 0
    assert count_wrong(outputs, settles_ties=True) == 1


@settings(deadline=None, derandomize=True)
@given(
    logits=hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.floats(-50, 50)),
    data=st.data(),
)
def test_top_entries_are_no_further_from_the_truth_than_logits(logits, data):
    moved = logits + data.draw(hnp.arrays(np.float64, logits.shape, elements=st.floats(-1, 1)))
    found = choose_top(moved, data.draw(st.integers(1, logits.shape[1])))
    assert measure_top(found, logits) <= np.abs(moved - logits).max() + 1e-9


def test_far_entries_are_told():
    logits = make_logits().astype(np.float64)
    found = choose_top(logits, 4)
    assert measure_top(found, logits) == 0
    for name, change in {"logits": 0.25, "ids": 1, "normaliser": 1e4}.items():
        wrong = Top(**{**vars(found), name: getattr(found, name) + change})
        assert measure_top(wrong, logits) > 0.1
    for name, value in {"ids": 300, "logits": np.nan, "normaliser": np.nan}.items():
        wrong = Top(**{**vars(found), name: np.full_like(getattr(found, name), value)})
        assert measure_top(wrong, logits) == np.inf
    # Of another model, or of other rows.
    assert measure_top(found, logits[:, :1]) == np.inf
    assert measure_top(found, logits[1:]) == np.inf
