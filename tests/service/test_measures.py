"""Measures that others have defined, against what those others say: `transformer_lens/record.py` wrote it down.

All measures are held to their definitions in `test_attention.py`.
"""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from attnserve.service import extents
from attnserve.service.diagnostics import diagnose
from attnserve.service.extents import About
from attnserve.service.measures import mean_cosine
from attnserve.weighing import WeightRows
from tests.service import slowly

RECORD = json.loads(Path(__file__).with_name("transformer_lens").joinpath("record.json").read_text("utf-8"))
NAMES = ("duplicate_token", "induction", "previous_token")


def make_rows(weights: np.ndarray) -> WeightRows:
    """All rows of causal maps [H, N, N]."""
    steps = np.arange(weights.shape[1])
    everything = slice(0, len(steps))
    return WeightRows(
        rows=everything,
        steps=steps,
        first_key=np.zeros_like(steps),
        last_key=steps,
        columns=everything,
        weights=weights.astype(np.float32),
        scores=None,
    )


@pytest.mark.parametrize("sparse", [1, 10**6], ids=["multiplied", "picked"])
@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: str(len(case["tokens"])))
def test_heads_score_what_transformer_lens_gives_them(case, sparse, monkeypatch):
    monkeypatch.setattr(extents, "SPARSE", sparse)
    weights = np.array(case["patterns"])
    length = weights.shape[1]
    assert len(case["scores"]) == 4
    for recorded in case["scores"]:
        about = About(
            num_keys=length,
            ids=np.array(case["tokens"]),
            exclude_bos=recorded["exclude_bos"],
            exclude_current_token=recorded["exclude_current_token"],
        )
        found = diagnose([make_rows(weights)], NAMES, len(weights), about)
        for name in ("duplicate_token", "induction"):
            np.testing.assert_allclose(found[name], recorded[f"{name}_head"], atol=1e-6)
        if not about.exclude_bos and not about.exclude_current_token:
            # It divides by all rows, the first included, which has no token before it.
            ours = found["previous_token"] * (length - 1) / length
            np.testing.assert_allclose(ours, recorded["previous_token_head"], atol=1e-5)


def test_what_was_found_goes_without_python_looking_for_cycles():
    weights = np.tril(np.full((1, 6, 6), 0.2))
    about = About(num_keys=6, ids=np.array([1, 2, 1, 2, 1, 2]))
    gc.disable()
    try:
        diagnose([make_rows(weights)], NAMES, 1, about)
        (extent,) = about.extents.values()
        kept = weakref.ref(extent)
        del extent, about
        assert kept() is None
    finally:
        gc.enable()


def test_the_record_is_of_heads_that_are_and_heads_that_are_not():
    assert RECORD["transformer_lens"] == "4.3.0"
    for name in ("duplicate_token_head", "induction_head"):
        scores = [score for case in RECORD["cases"] for one in case["scores"] for score in one[name]]
        assert min(scores) == 0
        assert max(scores) > 0.4


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("num_rows", [2, 5, 40])
def test_the_mean_cosine_needs_no_pairs(num_rows, size):
    rows = np.random.default_rng(num_rows).normal(size=(num_rows, size)) + 0.5
    assert mean_cosine(rows.astype(np.float32)) == pytest.approx(slowly.mean_cosine(rows), abs=1e-6)


def test_the_mean_cosine_of_what_has_none():
    assert mean_cosine(np.ones((4, 3))) == pytest.approx(1)
    assert np.isnan(mean_cosine(np.ones((1, 3))))
    assert np.isnan(mean_cosine(np.zeros((5, 3))))
    # A row of zeros points nowhere.
    assert mean_cosine(np.array([[1.0, 0], [0, 0], [0, 2]])) == pytest.approx(0)
