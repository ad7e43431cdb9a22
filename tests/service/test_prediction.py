"""Logits to the top entries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attnserve.service.engine import Answer
from attnserve.service.prediction import check_finite, render_prediction, top_ids
from attnserve.service.problems import Invalid

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def no_label(index: int) -> None:
    return None


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


def test_entries():
    logits = np.array([[0.0, 1.0, -1.0]], np.float32)
    answer = render_prediction(logits, np.array([4]), 2, ("x", "y", "z").__getitem__)
    total = 1 + np.e + 1 / np.e
    assert answer["positions"] == [4]
    ((first, second),) = answer["top"]
    assert (first["id"], first["label"], first["logit"]) == (1, "y", 1.0)
    assert (second["id"], second["label"], second["logit"]) == (0, "x", 0.0)
    assert first["probability"] == np.float32(np.e / total)
    assert second["probability"] == np.float32(1 / total)
    for name in ("probability", "logit"):
        # What orjson prints in the shortest form that is exact for float32, which of a Python float it cannot know.
        assert type(first[name]) is np.float32


def test_no_labels():
    answer = render_prediction(np.zeros((1, 3), np.float32), np.array([0]), 3, no_label)
    assert [entry["label"] for entry in answer["top"][0]] == [None] * 3


@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
def test_large_logits_do_not_overflow(scale):
    logits = np.array([[scale, -scale, scale]], np.float32)
    ((first, second, third),) = render_prediction(logits, np.array([0]), 3, no_label)["top"]
    assert [entry["probability"] for entry in (first, second, third)] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_each_position_by_itself(monkeypatch, block):
    monkeypatch.setattr("attnserve.service.prediction.MAX_BLOCK_NUMBERS", block)
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 30)).astype(np.float32)
    together = render_prediction(logits, np.arange(50), 30, no_label)["top"]
    for position in range(50):
        (alone,) = render_prediction(logits[position : position + 1], np.array([position]), 30, no_label)["top"]
        assert alone == together[position]
        assert sum(float(entry["probability"]) for entry in alone) == pytest.approx(1, abs=1e-6)


def test_what_overflows_is_named():
    right = Answer(logits=np.zeros((2, 3), np.float32), captures={"key": np.ones((4, 2), np.float16)})
    check_finite([right, right])
    for wrong in (
        Answer(logits=np.array([[0, np.inf, 0]], np.float32), captures={}),
        Answer(logits=right.logits, captures={"key": np.array([np.nan], np.float16)}),
    ):
        with pytest.raises(Invalid, match=r"sequences\[1\]: expected a sequence to which the model has a finite"):
            check_finite([right, wrong])
        with pytest.raises(Invalid, match=r"features\[1\]: expected"):
            check_finite([right, wrong], "features")
