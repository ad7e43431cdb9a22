"""What Prometheus sees of GPUs."""

import asyncio
import re
import threading
from pathlib import Path

import pytest

from attnserve.nvidia import Driver, DriverError, Gpu
from attnserve.service import gpu_gauges
from attnserve.service.gpu_gauges import FRESH_SECONDS, GpuGauges

GPU = {"name": "NVIDIA Fake", "memory_bytes": 80, "capability": "9.0"}
DRIVER = Driver(
    version="580.95.05",
    cuda="13.2",
    gpus=(Gpu(**GPU, free_bytes=79, uuid="GPU-a", busy=0.25), Gpu(**GPU, free_bytes=20, uuid="GPU-b", busy=None)),
)


def look(*reads, step=FRESH_SECONDS, **options):
    """What is seen each time, in one event loop; `reads` are what the driver does."""
    todo, now, seen = iter(reads), [0.0], []

    def read():
        found = next(todo)()
        if isinstance(found, Exception):
            raise found
        return found

    async def run():
        gauges = GpuGauges(**{"is_used": True, "read": read, "clock": lambda: now[0], **options})
        for _ in reads:
            await gauges.refresh()
            seen.append(
                {
                    (sample.name, *sample.labels.values()): sample.value
                    for metric in gauges.collect()
                    for sample in metric.samples
                }
            )
            now[0] += step

    asyncio.run(run())
    return seen


def test_every_gpu_by_its_number_and_uuid():
    (seen,) = look(lambda: DRIVER)
    assert seen == {
        ("gpu_driver_answers",): 1,
        ("gpu_memory_bytes", "0", "GPU-a"): 80,
        ("gpu_memory_bytes", "1", "GPU-b"): 80,
        ("gpu_memory_used_bytes", "0", "GPU-a"): 1,
        ("gpu_memory_used_bytes", "1", "GPU-b"): 60,
        # Parts of a GPU have none.
        ("gpu_busy_ratio", "0", "GPU-a"): 0.25,
    }


@pytest.mark.parametrize(("options", "driver"), [({}, None), ({"is_used": False}, DRIVER)])
def test_without_a_gpu_there_is_nothing(options, driver):
    assert look(lambda: driver, **options) == [{}]


def test_a_driver_that_says_no_is_seen_and_asked_again():
    seen = look(lambda: DRIVER, lambda: DriverError("GPU is lost"), lambda: DRIVER)
    assert [each[("gpu_driver_answers",)] for each in seen] == [1, 0, 1]
    assert len(seen[1]) == 1


def test_a_driver_that_hangs_is_waited_for_by_one_thread(monkeypatch):
    monkeypatch.setattr(gpu_gauges, "PATIENCE_SECONDS", 0.05)
    answers, asked = threading.Event(), []

    def hang():
        asked.append(None)
        answers.wait()
        return DRIVER

    try:
        seen = look(hang, hang, hang)
    finally:
        answers.set()
    assert seen == [{("gpu_driver_answers",): 0}] * 3
    assert len(asked) == 1


def test_the_page_lists_them():
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text("utf-8")
    ours = {metric.name for metric in GpuGauges(is_used=True).collect()}
    assert set(re.findall(r"^\| `(gpu_\w+)`", page, re.MULTILINE)) == ours


def test_whoever_looks_again_at_once_sees_the_same():
    asked = []
    seen = look(*[lambda: asked.append(None) or DRIVER] * 8, step=FRESH_SECONDS / 4)
    assert len(asked) == 2
    assert all(each == seen[0] for each in seen)
