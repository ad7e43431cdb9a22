"""Graphs that answer otherwise must fail; in tests/fake_cuda.py they can."""

import dataclasses

import numpy as np
import pytest

from attnserve.buckets import find_bucket
from attnserve.packing import pack
from attnserve.recordings import MAX_CELLS, MAX_ROWS
from benchmarks.gpu import graphs
from tests.fake_cuda import FakeCuda


@pytest.fixture
def on_gpu(plan, bundle):
    return dataclasses.replace(plan, device="cuda")


def test_graphs_that_answer_as_plain_runs_do(on_gpu, monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch.setattr)
    (finding,) = graphs.run(on_gpu)
    assert finding.verdict == "passed"
    assert finding.cells["recorded"] == "2"
    assert finding.cells["replays"] == finding.cells["equal bit for bit"] == "4"
    # One to each graph, and the rest plainly.
    (session,) = fake.sessions
    assert sorted(set(session.ids)) == ["-1", "1", "2"]


def test_graphs_that_compute_nothing(on_gpu, monkeypatch):
    FakeCuda(graphs_are_wrong=True).install(monkeypatch.setattr)
    (finding,) = graphs.run(on_gpu)
    assert "a graph answers otherwise than a plain run" in finding.broken


def test_models_that_cannot_have_any(on_gpu, monkeypatch):
    FakeCuda(refuses_graphs=True).install(monkeypatch.setattr)
    (finding,) = graphs.run(on_gpu)
    assert finding.broken == ("it has no graphs; the log of this run says why",)


def test_the_cpu_has_none(plan, bundle):
    (finding,) = graphs.run(plan)
    assert finding.unjudged == graphs.NO_GRAPHS
    assert finding.cells["equal bit for bit"] == finding.cells["replays"] == "4"


@pytest.mark.parametrize("difference", [2e-5, float("inf"), float("nan")])
def test_differences_beyond_the_certificate(bundle, difference):
    compared = graphs.Compared(
        state="on", num_recorded=1, num_replays=1, num_equal=0, difference=difference, allowed=1e-5
    )
    assert graphs.judge(bundle, "cuda", compared).broken
    assert not graphs.judge(bundle, "cuda", dataclasses.replace(compared, difference=1e-6)).broken
    assert graphs.judge(bundle, "cuda", dataclasses.replace(compared, difference=0.0, num_replays=0)).broken


@pytest.mark.parametrize("max_length", [1, 12, 1024])
def test_sizes_fit_graphs_and_differ(max_length):
    drawn = graphs.draw_sizes(8, max_length, np.random.default_rng(0))
    buckets = [find_bucket(pack([np.zeros(n, int) for n in lengths]), len(lengths), max_length) for lengths in drawn]
    assert len(set(buckets)) == len(buckets)
    assert all(bucket.num_rows <= MAX_ROWS and bucket.num_cells <= MAX_CELLS for bucket in buckets)
    # Of length 1 alone there are no eight sizes.
    assert len(buckets) == 8 or max_length == 1
