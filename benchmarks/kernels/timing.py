"""CPU seconds of calls that are taken in turn, so that what disturbs one round disturbs all of its calls."""

import statistics
import time
from collections.abc import Callable, Mapping

MIN_SAMPLE_SECONDS = 0.05


def time_calls(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each call in this thread, over rounds taken alternately."""
    repeats = {}
    for name, call in calls.items():
        call()
        once = _time(call, 1)
        repeats[name] = max(1, round(MIN_SAMPLE_SECONDS / once))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(_time(call, repeats[name]))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def _time(call: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - begin) / repeats
