"""Crossover: how many attention weights an answer takes until a GPU computes them sooner than the CPU does.

The question asked by default is asked both ways, forward pass and all: of captures that come to the host, and of
captures that stay on the GPU and are weighed there.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attnserve.resident import is_finite
from attnserve.service.attention import captures_for, compute_arrays, count_weights
from attnserve.service.engine import Engine, make_sequence
from attnserve.service.passes import make_jobs
from attnserve.service.preprocess import PredictRequest
from attnserve.service.question import parse_question
from attnserve.service.sequences import Input, Reader

LENGTHS = (16, 64, 256, 1024)
REPEATS = 3
# What is won by less, the clock may have won.
MIN_GAIN = 1.05
NO_POSITIONS = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """What was found."""

    weights_from: int | None
    """The number of weights from which the GPU is faster, there and at whatever is larger; None: never."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds that an answer takes each way."""

    num_weights: int
    on_host: float
    on_device: float


Ask = Callable[[int, bool], int]
"""Asks about a sequence of so many steps, of which captures stay or do not; returns how many weights that took."""


def find_crossover(timed: Sequence[Timed]) -> Crossover:
    """Where it is, as far as was timed."""
    found = None
    for one in sorted(timed, key=lambda one: one.num_weights, reverse=True):
        if one.on_device * MIN_GAIN > one.on_host:
            break
        found = one.num_weights
    return Crossover(weights_from=found)


def measure_crossover(
    ask: Ask, max_length: int, *, max_seconds: float, clock: Callable[[], float] = time.perf_counter
) -> Crossover:
    """Ask both ways about sequences of several lengths.

    Args:
        ask: a question.
        max_length: of a sequence.
        max_seconds: no new length begins after this time.
        clock: seconds.
    """
    start = clock()
    timed: list[Timed] = []
    for length in sorted({min(length, max_length) for length in LENGTHS}):
        if timed and clock() - start > max_seconds:
            break
        seconds = {}
        for stays in (False, True):
            num_weights = ask(length, stays)
            durations = []
            # The fastest of a few: what the machine can do, not what disturbed it.
            for _ in range(REPEATS):
                before = clock()
                ask(length, stays)
                durations.append(clock() - before)
            seconds[stays] = min(durations)
        timed.append(Timed(num_weights=num_weights, on_host=seconds[False], on_device=seconds[True]))
    return find_crossover(timed)


def ask_default(engine: Engine, reader: Reader, length: int, stays: bool) -> int:
    """Ask a model what it is asked by default about attention; an `Ask`.

    Raises:
        DeviceFailure: the device does not answer.
    """
    manifest = engine.manifest
    inputs = [Input(values=make_sequence(manifest, length, np.random.default_rng(length)))]
    question = parse_question({}, reader, inputs, "")
    request = PredictRequest(inputs=inputs, positions=[NO_POSITIONS], top_k=1, attention=question)
    answers = engine.run(make_jobs(request, manifest, captures_for(manifest, question), stays=stays))
    # As an answer is checked; what is random may well overflow.
    all(is_finite(captured) for answer in answers for captured in answer.captures.values())
    compute_arrays(engine.runtime.weighing, manifest.layers, request, answers)
    return count_weights(question, request.lengths)
