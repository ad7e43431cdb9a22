"""Queue and engine beside bare ONNX Runtime: wall time of the same batches, one after the other, in one run.

Bare is a session of the same options, to which the inputs of each batch, made before, are bound from the host, and
from which the logits are copied back: what anybody who serves with ONNX Runtime has to do.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from attnserve.bundle import LOGITS
from attnserve.cuda import CudaOptions
from attnserve.machine import memory_limit
from attnserve.nvidia import gpu_memory
from attnserve.runtime import Runtime
from attnserve.service.batching import Batcher
from attnserve.service.bench.engine import make_jobs
from attnserve.service.bench.report import take_percentiles
from attnserve.service.engine import Engine, form_feeds
from attnserve.service.job import Answer, Job
from attnserve.service.tuning import Tuner
from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.looking import look_at_all
from benchmarks.gpu.plan import Plan

LEAST_RATIO = 0.9


@dataclass(frozen=True, kw_only=True)
class Way:
    """How sequences are asked."""

    num_clients: int | None
    """Each asks again when it is answered; None is all at once."""
    num_sequences: int

    def __str__(self) -> str:
        if self.num_clients is None:
            return "all at once"
        return "one after the other" if self.num_clients == 1 else f"by {self.num_clients} clients, each in turn"


@dataclass(frozen=True, kw_only=True)
class Round:
    """The sequences once through the queue, and their batches once through a bare session."""

    seconds: float
    bare_seconds: float
    request_ms: tuple[float, ...]
    """From asked to answered."""
    batch_ms: tuple[float, ...]
    """Of the bare session, batch by batch."""


def run(plan: Plan) -> Iterator[Finding]:
    # On the CPU batches are recorded by nobody.
    for num_graphs in (0, plan.num_graphs) if plan.device == "cuda" else (0,):
        yield from look_at_all(plan, plan.timed_bundles(), partial(measure, num_graphs=num_graphs))


def measure(plan: Plan, bundle: Bundle, num_graphs: int) -> Iterator[Finding]:
    """All ways of asking, alternately with bare ONNX Runtime."""
    engine = Engine(bundle.folder, device=plan.device, num_threads=1, cuda=(CudaOptions(num_graphs=num_graphs),))
    bare = Runtime(bundle.folder, device=plan.device, num_threads=1)
    cost = Tuner(max_seconds=plan.tuning_seconds).tune("", engine, 1, is_idle=True).cost
    engine.forget_graphs()
    generator = np.random.default_rng(0)
    lengths = plan.draw_lengths(plan.num_sequences, engine.manifest.max_length, generator)
    jobs = make_jobs(engine.manifest, lengths, generator)
    batches: list[list[Job]] = []

    def keeping(batch: Sequence[Job]) -> list[Answer]:
        batches.append(list(batch))
        return engine.run(batch)

    most_bytes = (gpu_memory() or memory_limit()) / 2
    # One queue for all rounds: CUDA graphs are of the thread that has recorded them.
    with contextlib.closing(Batcher(keeping, cost, max_batch_bytes=most_bytes, max_queue=len(jobs))) as batcher:
        for way in list_ways(plan):
            # The first is to warm up, of both.
            _, *rounds = (time_round(batcher, batches, bare, jobs, way) for _ in range(plan.num_rounds + 1))
            yield judge(plan, bundle, num_graphs, way, rounds)


def list_ways(plan: Plan) -> list[Way]:
    """Who runs alone is answered soonest, and has the smallest batches: CUDA graphs are for those."""
    return [
        Way(num_clients=None, num_sequences=plan.num_sequences),
        Way(num_clients=plan.num_clients, num_sequences=plan.num_sequences),
        Way(num_clients=1, num_sequences=max(1, plan.num_sequences // 4)),
    ]


def judge(plan: Plan, bundle: Bundle, num_graphs: int, way: Way, rounds: Sequence[Round]) -> Finding:
    ratio = statistics.median(one.bare_seconds / one.seconds for one in rounds)
    is_at_once = way.num_clients is None
    cells = {
        **bundle.cells,
        "graphs": str(num_graphs),
        "asked": str(way),
        "sequences/s": f"{way.num_sequences / statistics.median(one.seconds for one in rounds):,.1f}",
        "bare": f"{way.num_sequences / statistics.median(one.bare_seconds for one in rounds):,.1f}",
        "of bare": f"{ratio:.2f}",
        "p50, p99 of a request: ms": "" if is_at_once else percentiles([ms for one in rounds for ms in one.request_ms]),
        "p50, p99 of a bare batch: ms": percentiles([ms for one in rounds for ms in one.batch_ms]),
        "batches": f"{statistics.mean(len(one.batch_ms) for one in rounds):.0f}",
    }
    if plan.device == "cpu":
        return Finding(cells=cells, unjudged="a CPU that others may use")
    if not is_at_once:
        return Finding(cells=cells, unjudged="between two batches the device waits for clients to ask again")
    broken = () if ratio >= LEAST_RATIO else (f"{ratio:.2f} of bare ONNX Runtime, at least {LEAST_RATIO} must be",)
    return Finding(cells=cells, broken=broken)


def percentiles(values: Sequence[float]) -> str:
    """p50 and p99."""
    found = take_percentiles(values) or {}
    return ", ".join(f"{found[name]:.2f}" for name in ("p50", "p99"))


def time_round(batcher: Batcher, batches: list[list[Job]], bare: Runtime, jobs: Sequence[Job], way: Way) -> Round:
    """The jobs, asked in a way; then the batches that were formed of them.

    Args:
        batcher: the queue of the engine.
        batches: where it leaves what it forms.
        bare: the session beside it.
        jobs: to choose from.
        way: how they are asked.
    """
    batches.clear()
    asked = jobs[: way.num_sequences]
    begin = time.perf_counter()
    request_ms = asyncio.run(ask_all(batcher, asked, way.num_clients or len(asked)))
    seconds = time.perf_counter() - begin
    feeds = [bare.feeds(one.packed, one.rows, one.capture) for one in map(form_feeds, batches)]
    batch_ms = [1000 * _seconds_of(lambda batch=batch: run_bound(bare, batch)) for batch in feeds]
    return Round(
        seconds=seconds, bare_seconds=sum(batch_ms) / 1000, request_ms=tuple(request_ms), batch_ms=tuple(batch_ms)
    )


def run_bound(runtime: Runtime, feeds: dict[str, np.ndarray]) -> None:
    """One run of the session itself, from the host and back."""
    import onnxruntime

    binding = runtime.session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
    binding.bind_output(LOGITS, runtime.device, runtime.gpu)
    runtime.session.run_with_iobinding(binding, onnxruntime.RunOptions())
    binding.copy_outputs_to_cpu()


async def ask_all(batcher: Batcher, jobs: Sequence[Job], num_clients: int) -> list[float]:
    """Send the jobs through the queue; each client asks again when it is answered. Milliseconds of each."""
    left = iter(jobs)
    milliseconds = []

    async def client() -> None:
        # All share one iterator: a client takes the next sequence there is.
        for job in left:
            begin = time.perf_counter()
            await batcher.submit([job])
            milliseconds.append(1000 * (time.perf_counter() - begin))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(num_clients, len(jobs))):
            tasks.create_task(client())
    return milliseconds


def _seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
