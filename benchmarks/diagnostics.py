"""What diagnostics cost beside the forward pass they are of: `.venv/bin/python -m benchmarks.diagnostics`.

Ratios of CPU time on one thread, taken alternately in one run, of the reference model with each variant. Medians of
`--rounds`, each of which begins with the forward pass that the others are divided by.
"""

import os

# Before numpy is imported, as `attnserve serve` does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attnserve.kernels import AUTO, OFF, require_kernels
from attnserve.service.answer import Content, describe_answer, write_answer, write_predictions
from attnserve.service.attention import captures_for, compute_arrays
from attnserve.service.engine import Engine
from attnserve.service.passes import make_jobs
from attnserve.service.preprocess import PredictRequest, parse_attention, parse_predict
from attnserve.service.sequences import Reader
from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference

CHEAP = ["distance", "sink", "self", "previous_token", "duplicate_token", "induction", "collapse", "received"]
QUESTIONS = {
    "cheap": {"diagnostics": CHEAP},
    "cheap and entropy": {"diagnostics": [*CHEAP, "entropy"]},
    "redundancy": {"diagnostics": ["redundancy"]},
    "last row of all maps": {"quantity": "weights", "queries": "last"},
    "one map": {"quantity": "weights", "pairs": [[3, 5]]},
    "rollout of the last": {"quantity": "rollout", "queries": "last"},
    "rollout of all": {"quantity": "rollout"},
}
"""Of every layer and head, unless they say otherwise."""


class Case:
    """One model and length, and the parts of its requests."""

    def __init__(self, engine: Engine, length: int) -> None:
        self.engine = engine
        self.reader = Reader(engine.manifest)
        ids = np.random.default_rng(length).integers(0, 1000, length).tolist()
        self.body = {"sequences": [ids], "top_k": 5}

    def parse(self, question: dict[str, object] | None) -> PredictRequest:
        document = json.dumps(self.body if question is None else {**self.body, **question}).encode()
        return (parse_predict if question is None else parse_attention)(document, self.reader)

    def predict(self) -> bytes:
        """A prediction, from body to body."""
        asked = self.parse(None)
        answers = self.engine.run(make_jobs(asked, self.engine.manifest, frozenset()))
        return bytes(write_predictions(describe_answer("model", 1, self.reader, asked, answers)).body)

    def ask(self, question: dict[str, object]) -> bytes:
        """A question, from body to body."""
        asked, answers = self.run(question)
        arrays = self.compute(asked, answers)
        document = describe_answer("model", 1, self.reader, asked, answers)
        content = Content(document=document, arrays=arrays)
        return bytes(write_answer(content, asked.attention, "application/json", "identity").body)

    def run(self, question: dict[str, object]):
        asked = self.parse(question)
        captures = captures_for(self.engine.manifest, asked.attention)
        return asked, self.engine.run(make_jobs(asked, self.engine.manifest, captures))

    def compute(self, asked: PredictRequest, answers: list):
        return compute_arrays(self.engine.runtime.weighing, self.engine.manifest.layers, asked, answers)


def measure(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each part, taken in turns."""
    for part in parts.values():
        part()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            begin = time.process_time()
            part()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_questions(case: Case, rounds: int) -> dict[str, float]:
    """What is made of the captures, by the forward pass without them."""
    parts: dict[str, Callable[[], object]] = {}
    forward = make_jobs(case.parse(None), case.engine.manifest, frozenset())
    parts["forward"] = lambda: case.engine.run(forward)
    for name, question in QUESTIONS.items():
        asked, answers = case.run(question)
        parts[name] = lambda asked=asked, answers=answers: case.compute(asked, answers)
    seconds = measure(parts, rounds)
    return {name: value / seconds["forward"] for name, value in seconds.items() if name != "forward"} | {
        "forward, ms": 1000 * seconds["forward"]
    }


def measure_request(case: Case, rounds: int) -> float:
    """A request for default diagnostics by one for the prediction alone, both from body to body."""
    seconds = measure({"predict": case.predict, "ask": lambda: case.ask({})}, rounds)
    return seconds["ask"] / seconds["predict"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--kernels", default=OFF, help=f"native kernels: {AUTO}, {OFF} (default) or a library")
    parser.add_argument("--json", type=Path, help="write all of it there")
    parsed = parser.parse_args()
    kernels = require_kernels(parsed.kernels)
    found = {}
    for variant in OPTIONS:
        bundle = export_reference(variant) / name_reference(variant) / "1"
        engine = Engine(bundle, device="cpu", num_threads=1, kernels=kernels)
        for length in parsed.lengths:
            case = Case(engine, length)
            ratios = measure_questions(case, parsed.rounds)
            ratios["a request for diagnostics, by its prediction"] = measure_request(case, parsed.rounds)
            found[f"{variant}, {length} steps"] = ratios
    width = max(map(len, next(iter(found.values()))))
    for name, ratios in found.items():
        print(f"{name}")
        for what, ratio in ratios.items():
            print(f"  {what:<{width}}  {ratio:8.2f}")
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
