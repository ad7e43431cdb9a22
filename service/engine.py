"""`Engine`: runs batches of one model. Packs, runs, unpacks; knows nothing of HTTP or queues."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import LOGITS, BundleError
from attnserve.golden import read_golden, replay
from attnserve.interface import Interface
from attnserve.packing import Packed, pack
from attnserve.runtime import Runtime
from attnserve.service.cost import Cost, measure_cost
from attnserve.service.observer import NOBODY, Observer


# Without a repr: inputs and answers are user data, and what can be printed ends up in a log one day.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Job:
    """One sequence and what is wanted of it."""

    sequence: NDArray[Any]
    """[n] ids or [n, F] feature vectors."""
    positions: NDArray[np.int64]
    """[P] steps whose logits are wanted."""
    captures: frozenset[str] = frozenset()
    """Names of the outputs to capture over all steps."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Answer:
    """What a run said about one sequence."""

    logits: NDArray[np.float32]
    """[P, W]"""
    captures: dict[str, NDArray[Any]]
    """By output name, [n, ...] each."""


@dataclass(frozen=True, kw_only=True)
class Feeds:
    """A batch as `Runtime.run` takes it."""

    packed: Packed
    rows: NDArray[np.int64]
    capture: NDArray[np.int64]
    outputs: list[str]


class Engine:
    """A bundle proven on this device, and what its batches cost.

    Raises:
        BundleError: damaged, or outside its certificate on this device.
        DeviceError: the device asked for cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str,
        num_threads: int,
        tuning_seconds: float,
        observer: Observer = NOBODY,
    ) -> None:
        self.observer = NOBODY
        self.runtime = Runtime(folder, device=device, num_threads=num_threads)
        self.manifest = self.runtime.manifest
        self.report = replay(self.runtime, read_golden(folder))
        if not self.report.passed:
            raise BundleError(f"{folder}: golden replay failed: {self.report.table()}")
        clock = time.process_time if self.runtime.device == "cpu" else time.perf_counter
        self.cost: Cost = measure_cost(self.manifest, self._run_lengths, max_seconds=tuning_seconds, clock=clock)
        # Only now: what was measured above is no traffic.
        self.observer = observer

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer the jobs from one run, in their order."""
        begin = time.perf_counter()
        feeds = form_feeds(jobs)
        packed = time.perf_counter()
        outputs = self.runtime.run(feeds.packed, feeds.rows, feeds.outputs, feeds.capture)
        self.observer.ran(
            lengths=feeds.packed.lengths, pack_seconds=packed - begin, compute_seconds=time.perf_counter() - packed
        )
        return split_outputs(jobs, outputs)

    def _run_lengths(self, lengths: Sequence[int]) -> None:
        one = np.zeros(1, np.int64)
        self.run([Job(sequence=make_sequence(self.manifest, length), positions=one) for length in lengths])


def make_sequence(
    interface: Interface, length: int, generator: np.random.Generator | None = None
) -> NDArray[np.int64] | NDArray[np.float32]:
    """A sequence to measure with: random, or of zeros without a generator."""
    if interface.num_features is not None:
        shape = (length, interface.num_features)
        return np.zeros(shape, np.float32) if generator is None else generator.normal(size=shape).astype(np.float32)
    assert interface.vocabulary_size is not None
    return np.zeros(length, np.int64) if generator is None else generator.integers(0, interface.vocabulary_size, length)


def form_feeds(jobs: Sequence[Job]) -> Feeds:
    """Pack jobs into one batch; rows and captures follow the order of the jobs."""
    packed = pack([job.sequence for job in jobs])
    starts = packed.starts
    rows = np.concatenate([start + job.positions for start, job in zip(starts, jobs, strict=True)])
    captured = [
        np.arange(start, start + len(job.sequence)) for start, job in zip(starts, jobs, strict=True) if job.captures
    ]
    names = sorted(frozenset().union(*(job.captures for job in jobs)))
    return Feeds(
        packed=packed,
        rows=rows,
        capture=np.concatenate(captured) if captured else np.empty(0, np.int64),
        outputs=[LOGITS, *names],
    )


def split_outputs(jobs: Sequence[Job], outputs: dict[str, NDArray[Any]]) -> list[Answer]:
    """Undo `form_feeds`: give every job its own rows."""
    answers = []
    row = captured = 0
    for job in jobs:
        logits = outputs[LOGITS][row : row + len(job.positions)]
        row += len(job.positions)
        captures = {name: outputs[name][captured : captured + len(job.sequence)] for name in job.captures}
        captured += len(job.sequence) if job.captures else 0
        answers.append(Answer(logits=logits, captures=captures))
    return answers
