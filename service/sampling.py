"""Sampling: some sequences of ordinary traffic are run once more, while nobody waits, to measure the heads.

Not in the batch that answers: captures would cost its other members too. What was chosen waits until the service is
idle, is given up as soon as somebody asks, and is forgotten when newer ones come.
"""

import asyncio
import logging
import random
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from starlette.background import BackgroundTask

from attnserve.interrupt import Interrupt, Interrupted
from attnserve.service.attention import captures_for, compute_arrays
from attnserve.service.idle import Idle
from attnserve.service.model import ServedModel
from attnserve.service.passes import make_jobs
from attnserve.service.prediction import check_finite
from attnserve.service.preprocess import PredictRequest
from attnserve.service.question import parse_question
from attnserve.service.sequences import Input

log = logging.getLogger(__name__)

DIAGNOSTICS = ("entropy", "sink", "collapse")
# Of one step there is no entropy, and no pair whose cosine could be taken.
MIN_LENGTH = 2
# Beyond them the oldest is forgotten: what is measured is what is asked now.
MAX_WAITING = 16
NO_POSITIONS: NDArray[np.int64] = np.empty(0, np.int64)


# Without a repr: inputs are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sample:
    """A sequence that was chosen."""

    model: "weakref.ref[ServedModel]"
    """A model that is replaced meanwhile goes, and its sample with it."""
    values: NDArray[Any]
    """As the model read it."""


class Sampler:
    """Chooses sequences, and has them measured while nobody waits for an answer. For one event loop.

    Chance decides, before anything is known of a request: no client can have its sequences measured, or not measured.

    Args:
        ratio: part of the requests of which one sequence is chosen.
        max_length: steps of a sequence; longer ones are counted and left out.
        idle: says when nobody waits.
        generator: decides.
    """

    def __init__(self, ratio: float, *, max_length: int, idle: Idle, generator: random.Random) -> None:
        self._ratio = ratio
        self._max_length = max_length
        self._idle = idle
        self._generator = generator
        self._waiting: deque[Sample] = deque()
        self._working: asyncio.Task[None] | None = None
        # A thread is made when there is something to do.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="sampling")

    def offer(self, model: ServedModel, asked: PredictRequest, response: Response) -> Response:
        """The response, behind which perhaps one of its sequences is taken, once it is sent.

        Args:
            model: that answered.
            asked: what it answered to.
            response: not sent yet.
        """
        if self._ratio and self._generator.random() < self._ratio:
            chosen = asked.inputs[self._generator.randrange(len(asked.inputs))]
            response.background = BackgroundTask(self._take, model, chosen.values)
        return response

    def close(self) -> None:
        """Forget what waits, and let the thread end."""
        self._waiting.clear()
        if self._working is not None:
            self._working.cancel()
        self._threads.shutdown(wait=False)

    async def _take(self, model: ServedModel, values: NDArray[Any]) -> None:
        if not MIN_LENGTH <= len(values) <= self._max_length:
            model.live.outcomes["length"] += 1
            return
        if len(self._waiting) == MAX_WAITING:
            displaced = self._waiting.popleft().model()
            if displaced is not None:
                displaced.live.outcomes["displaced"] += 1
        self._waiting.append(Sample(model=weakref.ref(model), values=values))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._waiting:
            await self._idle.wait()
            # Newer ones may have come, but only this takes any, from the left.
            sample = self._waiting.popleft()
            model = sample.model()
            if model is not None:
                model.live.outcomes[await self._measure(model, sample.values)] += 1

    async def _measure(self, model: ServedModel, values: NDArray[Any]) -> str:
        """Measure a sequence, and add what was found; returns what became of it."""
        interrupt = Interrupt()
        try:
            with self._idle.until_busy(interrupt.set):
                loop = asyncio.get_running_loop()
                measures = await loop.run_in_executor(self._threads, measure, model, values, interrupt)
        except Interrupted:
            return "interrupted"
        # Whatever it is, nobody waits for it, and the next sample may do better.
        except Exception as error:
            log.error("a sample of %d steps of %s cannot be measured", len(values), model.name, exc_info=error)
            return "failed"
        finally:
            # Also where this was cancelled, at the end of the service: a thread cannot be.
            interrupt.set()
        model.live.add(measures)
        return "measured"


def measure(model: ServedModel, values: NDArray[Any], interrupt: Interrupt) -> dict[str, NDArray[Any]]:
    """What the attention route would answer about one sequence, by measure: [layers, heads], or [layers] of layers.

    Beside the queue and its observers: nothing of it is traffic.

    Args:
        model: that runs it.
        values: [n] ids, or [n, F] feature vectors.
        interrupt: ends it, between two nodes of the graph or two blocks of rows.

    Raises:
        Interrupted: by `interrupt`.
        Invalid: the model has no finite answer.
    """
    manifest = model.manifest
    inputs = [Input(values=values)]
    question = parse_question({"diagnostics": list(DIAGNOSTICS)}, model.reader, inputs, "")
    # No logits: the unembedding may be half of the work.
    request = PredictRequest(inputs=inputs, positions=[NO_POSITIONS], top_k=1, attention=question)
    answers = model.engine.run_aside(make_jobs(request, manifest, captures_for(manifest, question)), interrupt)
    check_finite(answers)
    weighing = model.engine.runtime.weighing.checking(interrupt.check)
    (measures,) = compute_arrays(weighing, manifest.layers, request, answers)
    return measures
