"""What the engine and its queue cost beyond bare ONNX Runtime, as ratios of CPU time in one run.

Each ratio divides two CPU times of this process, all its threads included: medians of rounds taken alternately. CPU
time, because the machine may be shared; ratios, because machines differ.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attnserve.bundle import Manifest
from attnserve.kernels import require_kernels
from attnserve.machine import memory_limit
from attnserve.records import to_json
from attnserve.service.batching import Batcher
from attnserve.service.cost import Cost
from attnserve.service.engine import Engine, Feeds, form_feeds, make_sequence
from attnserve.service.job import Answer, Job
from attnserve.service.tuning import Tuner

NUM_SEQUENCES = 64
LONG, NUM_SHORT, SHORT = 1024, 15, 8


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One line of the table."""

    name: str
    ratio: float
    seconds: float
    """CPU seconds of the engine."""
    baseline_seconds: float
    """CPU seconds of what it is compared with."""
    num_batches: int


def run(parsed: argparse.Namespace) -> int:
    """Measure, print the table, and write JSON if asked."""
    kernels = require_kernels(parsed.kernels)
    engine = Engine(parsed.bundle, device=parsed.device, num_threads=parsed.num_threads, kernels=kernels)
    cost = Tuner(max_seconds=10.0).tune("", engine, 1, is_idle=True).cost
    generator = np.random.default_rng(0)
    longest = min(512, engine.manifest.max_length)
    mixed = make_jobs(engine.manifest, generator.integers(1, longest + 1, NUM_SEQUENCES).tolist(), generator)
    short = make_jobs(engine.manifest, [SHORT] * NUM_SEQUENCES, generator)
    lopsided = make_jobs(engine.manifest, [min(LONG, engine.manifest.max_length), *[SHORT] * NUM_SHORT], generator)
    ratios = [
        compare(
            f"{NUM_SEQUENCES} sequences of 1-{longest} / session.run on the same feeds", engine, cost, mixed, parsed
        ),
        compare(
            f"{NUM_SEQUENCES} sequences of 1-{longest} / each alone",
            engine,
            cost,
            mixed,
            parsed,
            baseline=[form_feeds([job]) for job in mixed],
        ),
        compare(f"{NUM_SEQUENCES} of {SHORT} / session.run on the same feeds", engine, cost, short, parsed),
        compare(
            f"1 of {len(lopsided[0].sequence)} among {NUM_SHORT} of {SHORT} / each alone",
            engine,
            cost,
            lopsided,
            parsed,
            baseline=[form_feeds([job]) for job in lopsided],
        ),
    ]
    by = "function bodies" if engine.kernels is None else "kernels"
    print(f"{engine.runtime.folder} on {engine.runtime.device}, {by}, {parsed.num_threads} thread(s); CPU seconds")
    print(f"{'engine':>8} {'baseline':>8} {'ratio':>6} {'batches':>7}")
    for entry in ratios:
        figures = f"{entry.seconds:>8.3f} {entry.baseline_seconds:>8.3f} {entry.ratio:>6.2f} {entry.num_batches:>7}"
        print(f"{figures}  {entry.name}")
    if parsed.json is not None:
        library = None if engine.kernels is None else str(engine.kernels)
        document = {"bundle": str(parsed.bundle), "kernels": library, "cost": to_json(cost), "ratios": to_json(ratios)}
        parsed.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


def make_jobs(manifest: Manifest, lengths: Sequence[int], generator: np.random.Generator) -> list[Job]:
    """Random sequences of the given lengths, each asking for its last step."""
    return [
        Job(sequence=make_sequence(manifest, length, generator), positions=np.array([length - 1])) for length in lengths
    ]


def compare(
    name: str,
    engine: Engine,
    cost: Cost,
    jobs: list[Job],
    parsed: argparse.Namespace,
    *,
    baseline: list[Feeds] | None = None,
) -> Ratio:
    """CPU time of the jobs through queue and engine, divided by bare `session.run`.

    The baseline runs the very feeds the engine formed, unless others are given.
    """
    formed: list[Feeds] = []

    def recording(batch: Sequence[Job]) -> list[Answer]:
        formed.append(form_feeds(batch))
        return engine.run(batch)

    answer_all(cost, recording, jobs)
    session = engine.runtime.session
    feeds = formed if baseline is None else baseline
    prepared = [(batch.outputs, engine.runtime.feeds(batch.packed, batch.rows, batch.capture)) for batch in feeds]

    def bare() -> None:
        for outputs, inputs in prepared:
            session.run(outputs, inputs)

    bare()
    ours, theirs = [], []
    for _ in range(parsed.rounds):
        ours.append(cpu_seconds(lambda: answer_all(cost, engine.run, jobs)))
        theirs.append(cpu_seconds(bare))
    return Ratio(
        name=name,
        ratio=statistics.median(ours) / statistics.median(theirs),
        seconds=statistics.median(ours),
        baseline_seconds=statistics.median(theirs),
        num_batches=len(formed),
    )


def answer_all(cost: Cost, run_batch: Callable[[Sequence[Job]], list[Answer]], jobs: list[Job]) -> None:
    """Send the jobs through a queue of their own and wait for all answers."""
    batcher = Batcher(run_batch, cost, max_batch_bytes=memory_limit() / 2, max_queue=len(jobs))
    try:
        asyncio.run(_submit(batcher, jobs))
    finally:
        batcher.close()


async def _submit(batcher: Batcher, jobs: list[Job]) -> None:
    # Returns nothing: asyncio.run would print the result into an error message of its own that nobody reads.
    await batcher.submit(jobs)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, all threads included, while `work` runs."""
    before = time.process_time()
    work()
    return time.process_time() - before
