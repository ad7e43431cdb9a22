"""What adds up rows of weights at the least cost: `.venv/bin/python -m benchmarks.rows`.

Every diagnostic that AttentionStatistics knows, of random captures of 6 causal layers with 8 heads of 32, on one
thread: in numpy from rows of weights, by the op's function body, and by its kernel where there is one. CPU
milliseconds, medians of `--rounds` that take turns.
"""

import os

# Before numpy is imported, as `attnserve serve` does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attnserve.bundle import Layer, rows_file
from attnserve.describing import Describing, statistics_file
from attnserve.export.graph import build_weights_graphs
from attnserve.kernels import AUTO, OFF, find_kernels
from attnserve.service.described import DESCRIBED, measure_described
from attnserve.service.diagnostics import diagnose
from attnserve.service.extents import About
from attnserve.sessions import open_session
from attnserve.weighing import Weighing
from benchmarks.diagnostics import measure

NUM_LAYERS, NUM_HEADS, HEAD_SIZE = 6, 8, 32
HEADS = range(NUM_HEADS)


class Case:
    """Captures of one sequence, and what makes measures of them."""

    def __init__(self, weighting: str, length: int, library: Path | None) -> None:
        self.layer = Layer(
            variant=weighting,
            op="",
            weighting=weighting,
            causal=True,
            scale=HEAD_SIZE**-0.5,
            epsilon=0.0,
            window=0,
            softcap=0.0,
            scope=None,
            scaling=None,
            num_heads=NUM_HEADS,
            num_key_heads=NUM_HEADS,
            head_size=HEAD_SIZE,
            value_size=HEAD_SIZE,
            captures=dict.fromkeys(("query", "key", "hidden", "value_norm"), ""),
        )
        random = np.random.default_rng(length)
        self.queries, self.keys = random.normal(size=(2, NUM_LAYERS, length, NUM_HEADS, HEAD_SIZE)).astype(np.float32)
        self.steps, self.ids = np.arange(length), random.integers(0, 1000, length)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.onnx"
            path.write_bytes(build_weights_graphs(weighting, portable=False)[rows_file(weighting)].SerializeToString())
            self.weighing = Weighing({rows_file(weighting): open_session(path, "cpu", 1)})
        self.body, self.kernel = (
            Describing({weighting: open_session(statistics_file(weighting), "cpu", 1, given)}, has_kernels=has_kernels)
            for given, has_kernels in ((None, False), (library, True))
        )

    def about(self) -> About:
        """What is known of the sequence before anything is measured."""
        return About(num_keys=len(self.ids), ids=self.ids)

    def measure_rows(self) -> list[dict[str, np.ndarray]]:
        """In numpy, from rows of weights."""
        about = self.about()
        return [
            diagnose(
                self.weighing.weigh(self.layer, query, key, steps=self.steps, heads=HEADS), DESCRIBED, NUM_HEADS, about
            )
            for query, key in zip(self.queries, self.keys, strict=True)
        ]

    def measure_sums(self, describing: Describing) -> list[dict[str, np.ndarray]]:
        """From what the op adds up."""
        about = self.about()
        return [
            measure_described(
                describing.describe(self.layer, query, key, steps=self.steps, heads=HEADS, ids=self.ids),
                DESCRIBED,
                about,
            )
            for query, key in zip(self.queries, self.keys, strict=True)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--kernels", default=AUTO, help=f"native kernels: {AUTO} (default), {OFF} or a library")
    parsed = parser.parse_args()
    library = find_kernels(parsed.kernels)
    print("| weighting | steps | numpy, ms | body, ms | kernel, ms | body / numpy | kernel / numpy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for weighting in ("softmax", "expressive"):
        for length in parsed.lengths:
            case = Case(weighting, length, library)
            parts: dict[str, Callable[[], object]] = {
                "numpy": case.measure_rows,
                "body": lambda case=case: case.measure_sums(case.body),
            }
            if library is not None:
                parts["kernel"] = lambda case=case: case.measure_sums(case.kernel)
            found = {name: 1000 * value for name, value in measure(parts, parsed.rounds).items()}
            ratios = [f"{found[name] / found['numpy']:.2f}" if name in found else "" for name in ("body", "kernel")]
            times = [f"{found[name]:.1f}" if name in found else "" for name in ("numpy", "body", "kernel")]
            print("|", " | ".join([weighting, str(length), *times, *ratios]), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
