"""Ratios, and who is asked which way."""

import dataclasses

import pytest

from attnserve.service.batching import Batcher
from benchmarks.gpu import engine
from tests.fake_cuda import FakeCuda


def rounds(*pairs):
    return [
        engine.Round(seconds=ours, bare_seconds=bare, request_ms=(1.0, 2.0), batch_ms=(500 * bare,) * 2)
        for ours, bare in pairs
    ]


AT_ONCE = engine.Way(num_clients=None, num_sequences=6)
IN_TURN = engine.Way(num_clients=2, num_sequences=6)


@pytest.fixture
def on_gpu(plan):
    return dataclasses.replace(plan, device="cuda")


def test_at_least_nine_tenths_of_bare(on_gpu, bundle):
    finding = engine.judge(on_gpu, bundle, 0, AT_ONCE, rounds((1.0, 0.92), (2.0, 1.82), (9.0, 1.0)))
    assert finding.verdict == "passed"
    assert finding.cells["of bare"] == "0.91"
    assert finding.cells["sequences/s"] == "3.0"
    assert finding.cells["batches"] == "2"
    finding = engine.judge(on_gpu, bundle, 0, AT_ONCE, rounds((1.0, 0.89), (2.0, 1.82), (9.0, 1.0)))
    assert finding.broken == ("0.89 of bare ONNX Runtime, at least 0.9 must be",)


def test_who_takes_turns_and_who_runs_on_a_cpu_is_not_judged(plan, on_gpu, bundle):
    slow = rounds((1.0, 0.1))
    finding = engine.judge(on_gpu, bundle, 0, IN_TURN, slow)
    assert (finding.broken, finding.unjudged is None) == ((), False)
    assert finding.cells["p50, p99 of a request: ms"] == "1.00, 2.00"
    assert engine.judge(plan, bundle, 0, AT_ONCE, slow).broken == ()


def test_all_ways_are_run(plan, bundle):
    at_once, in_turn, alone = engine.run(plan)
    asked = [finding.cells["asked"] for finding in (at_once, in_turn, alone)]
    assert asked == ["all at once", "by 2 clients, each in turn", "one after the other"]
    # Two clients never have more than two sequences in a batch.
    assert int(in_turn.cells["batches"]) >= 3
    assert at_once.cells["p50, p99 of a request: ms"] == ""
    assert alone.cells["p50, p99 of a request: ms"]


def test_a_gpu_is_measured_with_graphs_and_without(on_gpu, bundle, monkeypatch):
    FakeCuda().install(monkeypatch.setattr)
    made = []
    monkeypatch.setattr(engine, "Batcher", lambda *given, **named: made.append(Batcher(*given, **named)) or made[-1])
    findings = list(engine.run(on_gpu))
    assert len(made) == 2, "another thread would record every graph again, and its rounds tell of nothing else"
    assert [finding.cells["graphs"] for finding in findings] == ["0"] * 3 + ["64"] * 3
    # How fast a fake is, nobody cares.
    assert not [law for finding in findings for law in finding.broken if "of bare ONNX Runtime" not in law]
