"""What is flat, and what grows."""

import dataclasses

import pytest

from benchmarks.gpu import memory
from tests.fake_cuda import FakeCuda

MIB = 2**20


def in_mib(*readings):
    return [reading * MIB for reading in readings]


@pytest.mark.parametrize(
    "readings",
    [
        in_mib(*[1000] * 10),
        # It fills up, and gives back.
        in_mib(700, 900, 1000, 1000, 1000, 1000, 800, 1000, 1000, 1000),
        # A piece or two of 2 MiB, or a hundredth.
        in_mib(*[200] * 5, *[204] * 5),
        in_mib(*[2000] * 5, *[2020] * 5),
    ],
)
def test_flat(readings):
    assert memory.find_growth(readings) == []


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        (in_mib(*[1000] * 5, 1000, 1000, 1011, 1000, 1000), "grew by 11 MiB in the second half, at most 10"),
        (in_mib(*range(100, 200, 10)), "grew by 50 MiB in the second half, at most 4"),
    ],
)
def test_growing(readings, words):
    (law,) = memory.find_growth(readings)
    assert words in law


def test_a_gpu_is_judged_and_a_trial_is_not(plan, bundle):
    flat, growing = in_mib(*[500] * 10), in_mib(*range(100, 200, 10))
    on_gpu = dataclasses.replace(plan, device="cuda")
    leaking = memory.Readings(held=growing, needed=flat, of_process=flat)
    finding = memory.judge(on_gpu, bundle, 4, leaking)
    assert finding.broken
    assert finding.cells["MiB held, by tenths"].startswith("100 110")
    assert memory.judge(plan, bundle, 0, leaking).broken == ()
    # What is needed is given back.
    busy = memory.Readings(held=flat, needed=growing, of_process=growing)
    assert memory.judge(on_gpu, bundle, 0, busy).verdict == "passed"


def test_requests_are_run(plan, bundle):
    (finding,) = memory.run(plan)
    assert len(finding.cells["MiB held, by tenths"].split()) == memory.NUM_PARTS
    assert finding.unjudged


def test_a_driver_that_is_not_there(monkeypatch):
    monkeypatch.setattr(memory, "read_driver", lambda: None)
    with pytest.raises(RuntimeError, match="no driver tells"):
        memory.device_bytes()


def test_a_gpu_is_watched_with_graphs_and_without(plan, bundle, monkeypatch):
    FakeCuda().install(monkeypatch.setattr)
    monkeypatch.setattr(memory, "device_bytes", lambda: 500 * MIB)
    findings = list(memory.run(dataclasses.replace(plan, device="cuda")))
    assert [finding.verdict for finding in findings] == ["passed", "passed"]
    assert [finding.cells["graphs"] for finding in findings] == ["0", str(memory.NUM_GRAPHS)]
    assert findings[0].cells["while busy"] == " ".join(["500"] * memory.NUM_PARTS)
