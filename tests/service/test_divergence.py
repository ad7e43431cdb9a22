"""Divergences against their definitions, and where they have none."""

import numpy as np
import pytest

from attnserve.service.divergence import diverge_predictions, jensen_shannon, kullback_leibler


def slowly(p, q) -> float:
    """Sum of p log2(p / q)."""
    return sum(a * np.log2(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_jensen_shannon_is_the_mean_divergence_from_the_middle():
    first, second = np.random.default_rng(0).random((2, 4, 5, 9))
    first[0, 0, :5] = 0
    found = jensen_shannon(first, second)
    assert found.shape == (4, 5)
    for place in np.ndindex(4, 5):
        p, q = first[place] / first[place].sum(), second[place] / second[place].sum()
        expected = (slowly(p, (p + q) / 2) + slowly(q, (p + q) / 2)) / 2
        assert found[place] == pytest.approx(expected, abs=1e-12)
        assert found[place] == pytest.approx(jensen_shannon(second, first)[place], abs=1e-15)


def test_its_ends():
    rows = np.eye(3)[None]
    assert jensen_shannon(rows, rows).tolist() == [[0, 0, 0]]
    assert jensen_shannon(rows, rows[:, [1, 2, 0]]).tolist() == [[1, 1, 1]]
    # Scaled to 1 first, so that an epsilon is no difference.
    assert jensen_shannon(rows, 0.5 * rows).tolist() == [[0, 0, 0]]
    assert np.isnan(jensen_shannon(np.zeros((1, 3)), np.ones((1, 3)))).all()


def test_kullback_leibler_of_logits():
    first, second = 3 * np.random.default_rng(1).normal(size=(2, 4, 7)).astype(np.float32)
    for row, (one, other) in enumerate(zip(first.astype(float), second.astype(float), strict=True)):
        p, q = (np.exp(logits) / np.exp(logits).sum() for logits in (one, other))
        assert kullback_leibler(first, second)[row] == pytest.approx(slowly(p, q), rel=1e-6)
    assert (kullback_leibler(first, first + 5) < 1e-6).all()
    # Far apart, and still a number.
    assert np.isfinite(kullback_leibler(np.array([[0.0, 1e4]]), np.array([[1e4, 0.0]]))).all()


def test_predictions_diverge_by_their_probabilities():
    first, second = np.random.default_rng(2).normal(size=(2, 3, 5)).astype(np.float32)
    p, q = (np.exp(logits.astype(float)) for logits in (first, second))
    np.testing.assert_allclose(diverge_predictions(first, second), jensen_shannon(p, q), rtol=1e-5)
    assert diverge_predictions(first, second).dtype == np.float32
