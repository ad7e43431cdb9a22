"""Memory over many requests of random lengths: a device's as its driver tells, or this process's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from attnserve.cuda import CudaOptions
from attnserve.nvidia import read_driver
from attnserve.service.bench.engine import make_jobs
from attnserve.service.engine import Engine
from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.looking import look_at_all
from benchmarks.gpu.plan import Plan

NUM_PARTS = 10
# A device gives memory in pieces of 2 MiB.
LEAST_ALLOWED_BYTES = 4 * 2**20
MOST_GROWTH = 0.01
MAX_SEQUENCES = 16
# So few that all that may ever be recorded is, long before the first half is over.
NUM_GRAPHS = 4
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Bytes after every tenth."""

    held: tuple[int, ...]
    """When what was needed meanwhile has been given back, as an idle service does."""
    needed: tuple[int, ...]
    """Before that."""
    of_process: tuple[int, ...]


def run(plan: Plan) -> Iterator[Finding]:
    for num_graphs in (0, NUM_GRAPHS) if plan.device == "cuda" else (0,):
        yield from look_at_all(plan, plan.timed_bundles(), partial(find, num_graphs=num_graphs))


def find(plan: Plan, bundle: Bundle, num_graphs: int) -> Iterator[Finding]:
    yield judge(plan, bundle, num_graphs, watch(plan, bundle, num_graphs))


def watch(plan: Plan, bundle: Bundle, num_graphs: int) -> Readings:
    """Run the requests in batches of random sizes."""
    engine = Engine(bundle.folder, device=plan.device, num_threads=1, cuda=(CudaOptions(num_graphs=num_graphs),))
    generator = np.random.default_rng(0)
    taken = device_bytes if plan.device == "cuda" else resident_bytes
    held, needed, of_process = [], [], []
    for _ in range(NUM_PARTS):
        left = plan.num_requests // NUM_PARTS
        while left:
            size = min(left, int(generator.integers(1, MAX_SEQUENCES + 1)))
            lengths = plan.draw_lengths(size, engine.manifest.max_length, generator)
            engine.run(make_jobs(engine.manifest, lengths, generator))
            left -= size
        needed.append(taken())
        engine.shrink()
        held.append(taken())
        of_process.append(resident_bytes())
    return Readings(held=tuple(held), needed=tuple(needed), of_process=tuple(of_process))


def judge(plan: Plan, bundle: Bundle, num_graphs: int, readings: Readings) -> Finding:
    cells = {
        **bundle.cells,
        "graphs": str(num_graphs),
        "requests": f"{plan.num_requests:,}",
        "MiB held, by tenths": _in_mib(readings.held),
        "while busy": _in_mib(readings.needed),
        "of the process": _in_mib(readings.of_process),
    }
    if plan.device == "cpu":
        # The first hundreds of requests still fill up what allocators keep.
        return Finding(cells=cells, unjudged="memory of a process, over few requests")
    return Finding(cells=cells, broken=tuple(find_growth(readings.held)))


def find_growth(readings: Sequence[int]) -> list[str]:
    """The law that the second half takes no more than the first: what is kept for speed is all there by then."""
    half = len(readings) // 2
    before, after = max(readings[:half]), max(readings[half:])
    allowed = max(LEAST_ALLOWED_BYTES, MOST_GROWTH * before)
    if after - before <= allowed:
        return []
    return [f"memory grew by {(after - before) / MIB:.0f} MiB in the second half, at most {allowed / MIB:.0f} may be"]


def device_bytes() -> int:
    """What is taken of the GPUs, by whomever.

    Raises:
        RuntimeError: no driver says so.
    """
    driver = read_driver()
    if driver is None or not driver.gpus:
        raise RuntimeError("no driver tells of a GPU's memory")
    return sum(gpu.memory_bytes - gpu.free_bytes for gpu in driver.gpus)


def resident_bytes() -> int:
    """What is there of this process."""
    words = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(words.split()[1])


def _in_mib(readings: Sequence[int]) -> str:
    return " ".join(f"{reading / MIB:.0f}" for reading in readings)
