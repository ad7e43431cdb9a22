"""`Engine`: runs batches of one model. Packs, runs, unpacks; knows nothing of HTTP or queues."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import LOGITS, TOP, TOP_IDS
from attnserve.cuda import DEFAULTS, CudaOptions
from attnserve.interface import Interface
from attnserve.interrupt import Interrupt
from attnserve.machine import trim_malloc
from attnserve.packing import Empty, Packed, pack
from attnserve.report import Report
from attnserve.resident import Captured, Resident
from attnserve.runtime import NO_RESIDENTS, NO_ROWS, Runtime
from attnserve.service.devices import Devices, Gpus
from attnserve.service.job import Answer, Job, LogitsAnswer, TopAnswer
from attnserve.service.observer import NOBODY, BatchRun, Observer
from attnserve.top import read_top, suffices
from attnserve.weighing import Weighing

log = logging.getLogger(__name__)

# How often a run gives back what earlier ones needed and it does not. To take memory again costs a batch a few percent.
SHRINK_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Feeds:
    """A batch as `Runtime.run` takes it."""

    packed: Packed
    rows: NDArray[np.int64]
    capture: NDArray[np.int64]
    outputs: list[str]


class Engine:
    """A bundle proven on the devices it runs on.

    Args:
        folder: the bundle.
        device: "auto", "cpu" or "cuda".
        num_threads: of each session.
        kernels: library of native kernels; None runs function bodies.
        observer: told of the work.
        cuda: for each GPU, where the device is CUDA.

    Raises:
        BundleError: damaged, or outside its certificate on one of its devices.
        DeviceError: a device asked for cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str,
        num_threads: int,
        kernels: Path | None = None,
        observer: Observer = NOBODY,
        cuda: Sequence[CudaOptions] = (DEFAULTS,),
    ) -> None:
        self.num_threads = num_threads
        self.observer = observer

        def open_runtime(device: str, options: CudaOptions) -> Runtime:
            return Runtime(folder, device=device, num_threads=num_threads, op_library=kernels, cuda=options)

        self.devices = Devices(open_runtime, device, cuda)
        self.runtime = self.devices.runtimes[0]
        self.manifest = self.runtime.manifest
        self._checked = -math.inf
        self._shrunk = dict.fromkeys(self.devices.runtimes, -math.inf)

    @property
    def report(self) -> Report:
        """What golden's replay found."""
        return self.devices.report

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        return self.runtime.device

    @property
    def provider(self) -> str:
        """What ONNX Runtime calls it."""
        name: str = self.runtime.session.get_providers()[0]
        return name

    @property
    def kernels(self) -> Path | None:
        """The library whose kernels compute attention; None if function bodies do."""
        return self.runtime.op_library

    @property
    def gpus(self) -> Gpus | None:
        """How it uses GPUs; None on the CPU."""
        return self.devices.gpus

    @property
    def verdict(self) -> str:
        """What golden's replay found, in a line."""
        report = self.report
        certificate = report.certificate
        return (
            f"golden replayed, logits {report.logits:.1e} of {certificate.logits.allowed:.1e}, "
            f"maps {report.maps:.1e} of {certificate.maps.allowed:.1e}"
        )

    def is_sound(self) -> bool:
        """Whether golden is still answered rightly; to be asked when a run has failed, and looked at once a second."""
        if time.monotonic() - self._checked < 1:
            return True
        try:
            passed = self.devices.is_sound()
        except Exception:
            log.exception("golden cannot be replayed any more")
            return False
        # Only of a device that is sound: a broken one is none the sounder for having been looked at.
        if passed:
            self._checked = time.monotonic()
        return passed

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer the jobs, in their order: from one run, or one per `head_scale`, of which a run has one."""
        by_scale: dict[bytes, list[int]] = {}
        for place, job in enumerate(jobs):
            by_scale.setdefault(b"" if job.head_scale is None else job.head_scale.tobytes(), []).append(place)
        if len(by_scale) == 1:
            return self._run(jobs)
        answers: dict[int, Answer] = {}
        for places in by_scale.values():
            answers |= zip(places, self._run([jobs[place] for place in places]), strict=True)
        return [answers[place] for place in range(len(jobs))]

    def _run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer jobs of one `head_scale` from one run."""
        begin = time.perf_counter()
        feeds = form_feeds(jobs, self.runtime.empty, top_k=self.manifest.top_k)
        packed = time.perf_counter()
        with self.devices.take() as runtime:
            shrink = begin - self._shrunk[runtime] > SHRINK_SECONDS
            if shrink:
                self._shrunk[runtime] = begin
            staying = frozenset[str]().union(*(job.captures for job in jobs if job.stays))
            residents = runtime.hold(staying, len(feeds.capture)) if staying else NO_RESIDENTS
            outputs = runtime.run(
                feeds.packed,
                feeds.rows,
                [name for name in feeds.outputs if name not in residents],
                feeds.capture,
                jobs[0].head_scale,
                held=residents,
                shrink=shrink,
            )
        computed = time.perf_counter()
        if shrink:
            trim_malloc()
        self.observer.ran(
            BatchRun(
                lengths=feeds.packed.lengths,
                pads=self.kernels is None,
                pack_seconds=packed - begin,
                compute_seconds=computed - packed,
            )
        )
        weighing = None if runtime.residence is None else runtime.residence.weighing
        return split_outputs(jobs, outputs, residents, weighing)

    def run_aside(self, jobs: Sequence[Job], interrupt: Interrupt) -> list[Answer]:
        """Answer jobs without `head_scale` in any thread, beside the batches; nobody is told.

        Raises:
            Interrupted: by `interrupt`.
        """
        feeds = form_feeds(jobs, top_k=self.manifest.top_k)
        with self.devices.take() as runtime:
            outputs = runtime.run(feeds.packed, feeds.rows, feeds.outputs, feeds.capture, interrupt=interrupt)
        return split_outputs(jobs, outputs)

    def shrink(self) -> None:
        """Give back the memory of what has run, by one more run on each device, as short as can be; nobody is told."""
        job = Job(sequence=make_sequence(self.manifest, 1), positions=np.zeros(1, np.int64))
        feeds = form_feeds([job])
        for runtime in self.devices.runtimes:
            self._shrunk[runtime] = time.perf_counter()
            runtime.run(feeds.packed, feeds.rows, feeds.outputs, feeds.capture, shrink=True)
        trim_malloc()

    def forget_graphs(self) -> None:
        """Release the CUDA graphs of what was run to measure."""
        self.devices.forget_graphs()

    def run_lengths(self, lengths: Sequence[int]) -> None:
        """Run one batch of sequences of these lengths, for its cost alone."""
        one = np.zeros(1, np.int64)
        # As ordinary predictions do: of a graph that chooses entries itself not the logits.
        self.run([Job(sequence=make_sequence(self.manifest, length), positions=one, top_k=1) for length in lengths])


def make_sequence(
    interface: Interface, length: int, generator: np.random.Generator | None = None
) -> NDArray[np.int64] | NDArray[np.float32]:
    """A sequence to measure with: random, or of zeros without a generator."""
    if interface.num_features is not None:
        shape = (length, interface.num_features)
        return np.zeros(shape, np.float32) if generator is None else generator.normal(size=shape).astype(np.float32)
    assert interface.vocabulary_size is not None
    return np.zeros(length, np.int64) if generator is None else generator.integers(0, interface.vocabulary_size, length)


def form_feeds(jobs: Sequence[Job], empty: Empty = np.empty, *, top_k: int | None = None) -> Feeds:
    """Pack jobs into one batch; rows and captures follow the order of the jobs.

    Args:
        jobs: at least one.
        empty: as in `pack`.
        top_k: entries that the graph chooses itself; those for whom they are enough are not answered by logits.
    """
    packed = pack([job.sequence for job in jobs], empty)
    starts = packed.starts
    rows = [start + job.positions for start, job in zip(starts, jobs, strict=True)]
    captured = [
        np.arange(start, start + len(job.sequence)) for start, job in zip(starts, jobs, strict=True) if job.captures
    ]
    names = sorted(frozenset().union(*(job.captures for job in jobs)))
    by_top = [suffices(top_k, job.top_k) for job in jobs]
    answering = [*([] if all(by_top) else [LOGITS]), *(TOP if any(by_top) else [])]
    return Feeds(
        packed=packed,
        rows=rows[0] if len(rows) == 1 else np.concatenate(rows),
        capture=np.concatenate(captured) if captured else NO_ROWS,
        outputs=[*answering, *names],
    )


def split_outputs(
    jobs: Sequence[Job],
    outputs: Mapping[str, NDArray[Any]],
    residents: Mapping[str, Resident] = NO_RESIDENTS,
    weighing: Weighing | None = None,
) -> list[Answer]:
    """Undo `form_feeds`: give every job its own rows.

    Args:
        jobs: that were run.
        outputs: on the host.
        residents: further outputs, which stay on the device for the jobs that want them there.
        weighing: of that device.
    """
    whole: dict[str, Captured] = {**outputs, **residents}
    top = read_top(outputs) if TOP_IDS in outputs else None
    answers: list[Answer] = []
    row = captured = 0
    for job in jobs:
        start, row = row, row + len(job.positions)
        captures = {name: whole[name][captured : captured + len(job.sequence)] for name in job.captures}
        captured += len(job.sequence) if job.captures else 0
        there = weighing if residents else None
        answer: Answer
        if top is not None and suffices(top.ids.shape[1], job.top_k):
            answer = TopAnswer(top=top.rows(start, row), captures=captures, weighing=there)
        else:
            answer = LogitsAnswer(logits=outputs[LOGITS][start:row], captures=captures, weighing=there)
        answers.append(answer if job.stays else answer.to_host())
    return answers
