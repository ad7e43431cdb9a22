"""Totals of one version of a model."""

import threading

from attnserve.service.observer import BatchRun, Observers
from attnserve.service.statistics import Statistics

NOTHING = {"count": 0, "ns": 0}


def batch_run(lengths, pack_seconds, compute_seconds):
    return BatchRun(lengths=lengths, pads=True, pack_seconds=pack_seconds, compute_seconds=compute_seconds)


def test_nothing_has_happened():
    described = Statistics().describe()
    assert (described["last_inference"], described["inference_count"], described["execution_count"]) == (0, 0, 0)
    names = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}
    assert described["inference_stats"] == dict.fromkeys(names, NOTHING)
    assert described["batch_stats"] == []


def test_totals(monkeypatch):
    monkeypatch.setattr("attnserve.service.statistics.time.time_ns", lambda: 1_795_348_800_123_456_789)
    statistics = Statistics()
    for seconds in (0.5, 0.25, 0.125):
        statistics.waited(seconds)
    statistics.ran(batch_run([4, 1], 0.001, 0.25))
    statistics.ran(batch_run([7], 0.002, 0.5))
    statistics.ran(batch_run([2, 2], 0.004, 1.0))
    statistics.rendered(0.125)
    statistics.failed()
    for status in (200, 399, 400, 499, 504):
        statistics.finished(status, 1.0)
    assert statistics.describe() == {
        "last_inference": 1_795_348_800_123,
        "inference_count": 5,
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 2, "ns": 2_000_000_000},
            "fail": {"count": 3, "ns": 3_000_000_000},
            "queue": {"count": 3, "ns": 875_000_000},
            "compute_input": {"count": 3, "ns": 7_000_000},
            "compute_infer": {"count": 3, "ns": 1_750_000_000},
            "compute_output": {"count": 1, "ns": 125_000_000},
            "cache_hit": NOTHING,
            "cache_miss": NOTHING,
        },
        "batch_stats": [
            {
                "batch_size": 1,
                "compute_infer": {"count": 1, "ns": 500_000_000},
                "compute_input": {"count": 1, "ns": 2_000_000},
            },
            {
                "batch_size": 2,
                "compute_infer": {"count": 2, "ns": 1_250_000_000},
                "compute_input": {"count": 2, "ns": 5_000_000},
            },
        ],
    }


def test_told_and_asked_by_many_threads():
    statistics = Statistics()
    observers = Observers(statistics, Statistics())

    def work(size):
        for _ in range(300):
            observers.waited(0.0)
            observers.ran(batch_run([1] * size, 0.0, 0.0))
            statistics.finished(200, 0.0)
            described = statistics.describe()
            assert sum(row["compute_infer"]["count"] for row in described["batch_stats"]) <= 1200

    threads = [threading.Thread(target=work, args=(size,)) for size in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    described = statistics.describe()
    assert (described["inference_count"], described["execution_count"]) == (3000, 1200)
    assert described["inference_stats"]["success"]["count"] == described["inference_stats"]["queue"]["count"] == 1200
    assert [row["compute_infer"]["count"] for row in described["batch_stats"]] == [300] * 4


def test_observers_tell_everybody_everything():
    statistics = Statistics(), Statistics()
    observers = Observers(*statistics)
    observers.waited(0.5)
    observers.ran(batch_run([1], 0.5, 0.5))
    observers.rendered(0.5)
    observers.failed()
    first, second = (one.describe() for one in statistics)
    assert first["inference_stats"] == second["inference_stats"]
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(first["inference_stats"][stage] == {"count": 1, "ns": 500_000_000} for stage in stages)
