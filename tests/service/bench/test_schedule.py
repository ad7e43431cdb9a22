"""Arrivals: the process that was asked for, drawn before the run, the same for the same seed."""

import numpy as np
import pytest

from attnserve.service.bench.schedule import draw_arrivals


def draw(arrivals="poisson", *, rate=50.0, seconds=400.0, seed=0):
    return draw_arrivals(arrivals, rate=rate, seconds=seconds, generator=np.random.default_rng(seed))


def test_constant_arrivals_are_evenly_spaced():
    assert draw("constant", rate=4, seconds=1.5).tolist() == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize(("rate", "seconds"), [(10, 0.3), (3, 1.0), (49, 1 / 49), (1000, 0.001), (0.1, 5)])
def test_constant_arrivals_end_before_the_run_does(rate, seconds):
    due = draw("constant", rate=rate, seconds=seconds)
    assert due[-1] < seconds
    assert len(due) in (int(rate * seconds), int(rate * seconds) + 1)


def test_poisson_arrivals_have_exponential_gaps_of_the_right_mean():
    due = draw()
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] < 400
    # 20,000 are expected, give or take the square root.
    assert abs(len(due) - 20_000) < 4 * 20_000**0.5
    gaps = np.sort(np.diff(due))
    expected = 1 - np.exp(-50 * gaps)
    # Kolmogorov-Smirnov at 1 %.
    assert np.abs(expected - np.arange(1, len(gaps) + 1) / len(gaps)).max() < 1.63 / len(gaps) ** 0.5


def test_poisson_counts_vary_as_much_as_their_mean():
    counts = np.histogram(draw(), bins=400, range=(0, 400))[0]
    assert counts.mean() == pytest.approx(50, rel=0.03)
    assert counts.var() == pytest.approx(50, rel=0.25)


def test_the_seed_decides():
    assert draw(seed=3).tolist() == draw(seed=3).tolist()
    assert draw(seed=3).tolist() != draw(seed=4).tolist()


def test_there_may_be_none():
    assert draw(rate=1e-9, seconds=1.0).tolist() == []
