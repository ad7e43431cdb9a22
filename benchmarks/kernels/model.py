"""The reference model: predictions with kernels and with function bodies, and a batch beside its members alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import LOGITS
from attnserve.packing import pack
from attnserve.runtime import Runtime
from benchmarks.kernels.timing import time_calls

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
NUM_MIXED = 32


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """CPU seconds of one thread, by length of the one sequence predicted from."""

    variant: str
    body: dict[int, float]
    kernel: dict[int, float]
    mixed_together: float
    """A batch of mixed lengths, with kernels."""
    mixed_alone: float
    """Its members one at a time, with kernels."""


def measure_model(variant: str, bundle: Path, library: Path, rounds: int) -> ModelFigures:
    """Time one reference model."""
    random = np.random.default_rng(0)
    body, kernel = (Runtime(bundle, num_threads=1, op_library=chosen) for chosen in (None, library))
    vocabulary_size = kernel.manifest.vocabulary_size
    sequences = {length: random.integers(0, vocabulary_size, length) for length in LENGTHS}
    mixed = [random.integers(0, vocabulary_size, length) for length in random.integers(8, 513, NUM_MIXED)]
    bodies, kernels = {}, {}
    for length, sequence in sequences.items():
        calls = {"body": predict(body, [sequence]), "kernel": predict(kernel, [sequence])}
        seconds = time_calls(calls, rounds)
        bodies[length], kernels[length] = seconds["body"], seconds["kernel"]
    alone = [predict(kernel, [sequence]) for sequence in mixed]
    seconds = time_calls({"together": predict(kernel, mixed), "alone": lambda: [call() for call in alone]}, rounds)
    return ModelFigures(
        variant=variant,
        body=bodies,
        kernel=kernels,
        mixed_together=seconds["together"],
        mixed_alone=seconds["alone"],
    )


def predict(runtime: Runtime, sequences: list[NDArray[np.int64]]) -> Callable[[], Any]:
    """A run that answers the last step of every sequence."""
    packed = pack(sequences)
    last = np.cumsum(packed.lengths) - 1
    return lambda: runtime.run(packed, last, [LOGITS])


def format_models(figures: list[ModelFigures]) -> str:
    """A table in markdown: body / kernel by length, and the batch by its members."""
    head = ["variant", *map(str, LENGTHS), f"{NUM_MIXED} of 8-512 together / alone"]
    lines = [head, ["---"] * len(head)]
    for line in figures:
        ratios = [f"{line.body[length] / line.kernel[length]:.2f}" for length in LENGTHS]
        lines.append([line.variant, *ratios, f"{line.mixed_together / line.mixed_alone:.2f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
