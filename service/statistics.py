"""Statistics: totals of one version of a model since it was loaded, as the Open Inference Protocol shows them."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from attnserve.service.observer import BatchRun, Observer

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Total:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count += 1
        self.seconds += seconds

    def describe(self) -> dict[str, int]:
        """As the protocol has it."""
        return {"count": self.count, "ns": round(1e9 * self.seconds)}


class Statistics(Observer):
    """What one version of a model has done.

    `queue` counts sequences, `compute_input` (packing) and `compute_infer` batches, `compute_output` (rendering)
    answers, `success` and `fail` requests.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, Total] = defaultdict(Total)
        self._batches: dict[int, dict[str, Total]] = defaultdict(lambda: defaultdict(Total))
        self._num_sequences = 0
        self._last_milliseconds = 0

    def waited(self, seconds: float) -> None:
        """A sequence has left the queue."""
        with self._lock:
            self._totals["queue"].add(seconds)

    def ran(self, batch: BatchRun) -> None:
        """A batch has been answered."""
        num_sequences = len(batch.lengths)
        with self._lock:
            self._num_sequences += num_sequences
            self._last_milliseconds = time.time_ns() // 1_000_000
            for totals in (self._totals, self._batches[num_sequences]):
                totals["compute_input"].add(batch.pack_seconds)
                totals["compute_infer"].add(batch.compute_seconds)

    def rendered(self, seconds: float) -> None:
        """An answer has been made."""
        with self._lock:
            self._totals["compute_output"].add(seconds)

    def finished(self, status: int, seconds: float) -> None:
        """A request to this model has been answered."""
        with self._lock:
            self._totals["success" if status < 400 else "fail"].add(seconds)

    def describe(self) -> dict[str, Any]:
        """As the protocol has it, but for the model's name and version."""
        with self._lock:
            totals = {name: self._totals[name].describe() for name in ("success", "fail", *STAGES)}
            nothing = Total().describe()
            return {
                "last_inference": self._last_milliseconds,
                "inference_count": self._num_sequences,
                "execution_count": self._totals["compute_infer"].count,
                # There is no cache of answers.
                "inference_stats": {**totals, "cache_hit": nothing, "cache_miss": nothing},
                "batch_stats": [
                    {"batch_size": size, **{name: total.describe() for name, total in sorted(totals.items())}}
                    for size, totals in sorted(self._batches.items())
                ],
            }
