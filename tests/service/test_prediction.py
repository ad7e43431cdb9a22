"""Logits to the top entries."""

import numpy as np
import pytest

from attnserve.service.job import LogitsAnswer
from attnserve.service.prediction import check_finite, render_prediction
from attnserve.service.problems import Invalid
from attnserve.top import choose_top


def no_label(index: int) -> None:
    return None


def render(logits: np.ndarray, positions: np.ndarray, top_k: int, label=no_label):
    return render_prediction(choose_top(logits, top_k), positions, label)


def test_entries():
    logits = np.array([[0.0, 1.0, -1.0]], np.float32)
    answer = render(logits, np.array([4]), 2, ("x", "y", "z").__getitem__)
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
    answer = render(np.zeros((1, 3), np.float32), np.array([0]), 3)
    assert [entry["label"] for entry in answer["top"][0]] == [None] * 3


@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
def test_large_logits_do_not_overflow(scale):
    logits = np.array([[scale, -scale, scale]], np.float32)
    ((first, second, third),) = render(logits, np.array([0]), 3)["top"]
    assert [entry["probability"] for entry in (first, second, third)] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_each_position_by_itself(monkeypatch, block):
    monkeypatch.setattr("attnserve.top.MAX_BLOCK_NUMBERS", block)
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 30)).astype(np.float32)
    together = render(logits, np.arange(50), 30)["top"]
    for position in range(50):
        (alone,) = render(logits[position : position + 1], np.array([position]), 30)["top"]
        assert alone == together[position]
        assert sum(float(entry["probability"]) for entry in alone) == pytest.approx(1, abs=1e-6)


def test_what_overflows_is_named():
    right = LogitsAnswer(logits=np.zeros((2, 3), np.float32), captures={"key": np.ones((4, 2), np.float16)})
    check_finite([right, right])
    for wrong in (
        LogitsAnswer(logits=np.array([[0, np.inf, 0]], np.float32), captures={}),
        LogitsAnswer(logits=right.logits, captures={"key": np.array([np.nan], np.float16)}),
    ):
        with pytest.raises(Invalid, match=r"sequences\[1\]: expected a sequence to which the model has a finite"):
            check_finite([right, wrong])
        with pytest.raises(Invalid, match=r"features\[1\]: expected"):
            check_finite([right, wrong], "features")
