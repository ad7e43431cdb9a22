"""What a sample of live heads costs, and how soon it gives way: `.venv/bin/python -m benchmarks.sampling`.

Samples are those of `attnserve serve --sample-heads`, of the reference model with each variant, on one thread, without
kernels. The first column is CPU time, by that of the forward pass that predicts. The others are milliseconds from the
request that ends a sample, at a random moment, to its end.
"""

import os

# Before numpy is imported, as `attnserve serve` does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from attnserve.interrupt import Interrupt, Interrupted
from attnserve.service.engine import Engine
from attnserve.service.job import Job
from attnserve.service.sampling import measure
from attnserve.service.sequences import Reader
from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference

LENGTHS = (128, 256, 512, 1024)


def compare_costs(model: Any, values: np.ndarray, num_rounds: int) -> float:
    """CPU time of a sample, by that of the prediction."""
    job = Job(sequence=values, positions=np.array([len(values) - 1]))
    ratios = []
    for _ in range(num_rounds):
        plain = _time(lambda: model.engine.run_aside([job], Interrupt()), time.process_time)
        ratios.append(_time(lambda: measure(model, values, Interrupt()), time.process_time) / plain)
    return statistics.median(ratios)


def time_interrupts(model: Any, values: np.ndarray, num_rounds: int) -> list[float]:
    """Seconds from interrupts to the ends of samples, rising."""
    whole = min(_time(lambda: measure(model, values, Interrupt())) for _ in range(3))
    generator, rests = random.Random(0), []
    while len(rests) < num_rounds:
        interrupt, ends = Interrupt(), []
        thread = threading.Thread(target=_measure_until, args=(model, values, interrupt, ends))
        thread.start()
        time.sleep(whole * generator.uniform(0.05, 0.95))
        begin = time.perf_counter()
        interrupt.set()
        thread.join()
        # One that was over already was not interrupted.
        rests += [end - begin for end in ends]
    return sorted(rests)


def _measure_until(model: Any, values: np.ndarray, interrupt: Interrupt, ends: list[float]) -> None:
    try:
        measure(model, values, interrupt)
    except Interrupted:
        ends.append(time.perf_counter())


def _time(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    work()
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="interrupts of each kind (default: 60)")
    num_rounds = parser.parse_args().rounds
    print("| variant | steps | sample / prediction | gives way: median ms | 90 % | longest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant in OPTIONS:
        bundle = export_reference(variant) / name_reference(variant) / "1"
        engine = Engine(bundle, device="cpu", num_threads=1)
        model = SimpleNamespace(engine=engine, manifest=engine.manifest, reader=Reader(engine.manifest))
        for length in LENGTHS:
            values = np.random.default_rng(0).integers(0, engine.manifest.vocabulary_size or 1, length)
            ratio = compare_costs(model, values, 7)
            rests = [1000 * seconds for seconds in time_interrupts(model, values, num_rounds)]
            shown = (rests[len(rests) // 2], rests[len(rests) * 9 // 10], rests[-1])
            print(
                f"| {variant} | {length} | {ratio:.2f} | " + " | ".join(f"{one:.1f}" for one in shown) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
