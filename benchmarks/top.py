"""What entries chosen in the graph gain: `.venv/bin/python -m benchmarks.top`.

The reference model with dot-product attention and two vocabularies, exported with `--top-k 20` and without, on one
thread, without kernels. A whole answer, from the engine's run to the bytes of its JSON, with the 5 likeliest entries of
each position: CPU time with, by CPU time without, in turns. The last column is the same of the run alone where somebody
needs all logits, for whom the graph chooses in vain.
"""

import os

# Before numpy is imported, as `attnserve serve` does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attnserve.service.answer import describe_answer, write_predictions
from attnserve.service.engine import Engine
from attnserve.service.job import Job
from attnserve.service.passes import make_jobs
from attnserve.service.prediction import check_finite
from attnserve.service.preprocess import PredictRequest
from attnserve.service.sequences import Input, Reader
from benchmarks.reference import CACHE

VOCABULARIES = (1000, 50257)
SHAPES = ((128, 1), (16, 16), (512, 512))
"""Steps of the sequence, and how many of them, the last, are predicted from."""
K, TOP_K = 20, 5

Work = Callable[[Engine, PredictRequest], object]


def open_engine(size: int, top_k: int | None, cache: Path = CACHE) -> Engine:
    """The model with a vocabulary of that size, exported unless it is there."""
    name = f"vocabulary-{size}"
    checkpoint = cache / "checkpoints" / name
    bundle = cache / name / ("plain" if top_k is None else f"top-{top_k}") / "1"
    if not bundle.exists():
        given = f"'dot_product', Path({str(checkpoint)!r}), 1024, {size}"
        save = f"from benchmarks.models import *; save_reference({given})"
        flags = [] if top_k is None else ["--top-k", str(top_k)]
        for command in (["-c", save], ["-m", "attnserve", "export", str(checkpoint), str(bundle), *flags]):
            subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr)
    return Engine(bundle, device="cpu", num_threads=1)


def make_request(size: int, num_steps: int, num_positions: int) -> PredictRequest:
    """One random sequence, whose last positions are predicted from."""
    values = np.random.default_rng(0).integers(0, size, num_steps)
    positions = np.arange(num_steps - num_positions, num_steps)
    return PredictRequest(inputs=[Input(values=values)], positions=[positions], top_k=TOP_K)


def answer(engine: Engine, request: PredictRequest) -> bytes:
    """What the route of predictions makes of a request, as bytes of its answer."""
    answers = engine.run(make_jobs(request, engine.manifest, frozenset()))
    check_finite(answers)
    document = describe_answer("model", 1, Reader(engine.manifest), request, answers)
    return bytes(write_predictions(document).body)


def run_all(engine: Engine, request: PredictRequest) -> None:
    """The run alone of somebody who needs all logits."""
    (read,), (positions,) = request.inputs, request.positions
    engine.run([Job(sequence=read.values, positions=positions)])


def compare(work: Work, choosing: Engine, plain: Engine, request: PredictRequest, num_rounds: int) -> list[float]:
    """CPU seconds of the first engine and of the second, and their quotient: medians of turns."""
    for engine in (choosing, plain):
        work(engine, request)
    turns = [[cpu_seconds(work, engine, request) for engine in (choosing, plain)] for _ in range(num_rounds)]
    return [statistics.median(column) for column in zip(*([*turn, turn[0] / turn[1]] for turn in turns), strict=True)]


def cpu_seconds(work: Work, engine: Engine, request: PredictRequest) -> float:
    """CPU time of this process meanwhile."""
    begin = time.process_time()
    work(engine, request)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31, help="of each pair (default: 31)")
    num_rounds = parser.parse_args().rounds
    print("| vocabulary | steps | predicted | without: ms | with / without | run for all logits: with / without |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in VOCABULARIES:
        choosing, plain = open_engine(size, K), open_engine(size, None)
        for num_steps, num_positions in SHAPES:
            request = make_request(size, num_steps, num_positions)
            _, seconds, ratio = compare(answer, choosing, plain, request, num_rounds)
            *_, loss = compare(run_all, choosing, plain, request, num_rounds)
            figures = f"{1000 * seconds:.1f} | {ratio:.2f} | {loss:.2f}"
            print(f"| {size} | {num_steps} | {num_positions} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
