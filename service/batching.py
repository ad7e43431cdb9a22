"""`Batcher`: one queue and one worker thread per engine. No polling, no sleeps.

A free engine takes what is waiting now; requests take turns. The worker cannot end without failing every waiting
future.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from attnserve.service.cost import Cost, Shape, take_batch
from attnserve.service.engine import Answer, Job
from attnserve.service.observer import NOBODY, Observer
from attnserve.service.problems import InternalError, Overloaded, TooLarge, Unavailable

log = logging.getLogger(__name__)

Run = Callable[[Sequence[Job]], list[Answer]]


class _Request:
    """The jobs of one HTTP request: a single future that is done when all of them are."""

    def __init__(self, num_jobs: int) -> None:
        self.future: Future[list[Answer]] = Future()
        self.answers: list[Answer | None] = [None] * num_jobs
        self.num_missing = num_jobs

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: failed, or the client left."""
        return self.future.done()

    def deliver(self, place: int, answer: Answer) -> None:
        self.answers[place] = answer
        self.num_missing -= 1
        if not self.num_missing:
            self._finish(lambda: self.future.set_result([answer for answer in self.answers if answer is not None]))

    def fail(self, error: BaseException) -> None:
        self._finish(lambda: self.future.set_exception(error))

    def _finish(self, settle: Callable[[], None]) -> None:
        # The client may leave between the check and the call; then there is nobody to tell.
        if not self.is_over and self.future.set_running_or_notify_cancel():
            settle()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """One sequence in the queue."""

    job: Job
    request: _Request
    place: int
    turn: int
    """When it is due: sequences of several requests take turns."""
    since: float
    """When it was queued, by the batcher's clock."""


class Batcher:
    """Queue in front of an engine.

    Args:
        run: answers a batch; called from the worker thread only.
        cost: what a batch costs.
        max_batch_bytes: estimated memory one batch may need.
        max_queue: sequences that may wait.
        max_batch_ms: estimated time one batch of several sequences may take.
        max_wait_ms: how long a free engine waits for company.
        name: of the worker thread.
        observer: told how long sequences waited, and of batches that failed.
        clock: seconds.
    """

    def __init__(
        self,
        run: Run,
        cost: Cost,
        *,
        max_batch_bytes: float,
        max_queue: int,
        max_batch_ms: float = math.inf,
        max_wait_ms: float = 0.0,
        name: str = "engine",
        observer: Observer = NOBODY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_batch_bytes = max_batch_bytes
        self._max_queue = max_queue
        self._max_batch_ms = max_batch_ms
        self._max_wait_ms = max_wait_ms
        self._observer = observer
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running: list[_Waiting] = []
        self._turn = 0
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether work is taken: not closed, and the worker is alive."""
        return not self._closed

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    async def submit(self, jobs: Sequence[Job]) -> list[Answer]:
        """Queue the jobs of one request and wait for all answers, in their order.

        Raises:
            TooLarge: a sequence needs more memory than a batch may, or there are more than the queue holds.
            Overloaded: the queue has no room for all of them; none is queued.
            Unavailable: closed.
        """
        lengths = [len(job.sequence) for job in jobs]
        longest = max(lengths)
        if self._cost.bytes(Shape().add(longest)) > self._max_batch_bytes:
            fits = self._cost.longest_within(self._max_batch_bytes)
            raise TooLarge.about(
                f"sequences[{lengths.index(longest)}]",
                f"expected at most {fits} steps, which is what fits in {self._max_batch_bytes:.0f} bytes of "
                f"memory here, got {longest}",
            )
        if len(jobs) > self._max_queue:
            raise TooLarge.about("sequences", f"expected at most {self._max_queue} in one request, got {len(jobs)}")
        request = _Request(len(jobs))
        with self._changed:
            if self._closed:
                raise Unavailable("the model has stopped")
            if len(self._waiting) + len(jobs) > self._max_queue:
                raise Overloaded(
                    f"{len(self._waiting)} sequences are waiting and at most {self._max_queue} may; "
                    f"{len(jobs)} more were sent"
                )
            # A request's n-th sequence is due n turns after the one being served: thousands in one request do not hold
            # up those of others, and since turns only rise nobody waits for ever.
            now = self._clock()
            self._waiting.extend(
                _Waiting(job=job, request=request, place=place, turn=self._turn + place, since=now)
                for place, job in enumerate(jobs)
            )
            self._changed.notify()
        return await asyncio.wrap_future(request.future)

    def close(self) -> None:
        """Stop taking work, finish what is queued and end the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while batch := self._next_batch():
                now = self._clock()
                for waiting in batch:
                    self._observer.waited(now - waiting.since)
                self._answer(batch)
                self._running = []
        finally:
            # Reached by `close`, or by an error that should not exist; either way nobody is left waiting.
            with self._changed:
                self._closed = True
                left, self._waiting = [*self._running, *self._waiting], deque()
            for waiting in left:
                waiting.request.fail(Unavailable("the model has stopped"))

    def _next_batch(self) -> list[_Waiting]:
        """Wait for work and take what should run together; nothing when closed and empty."""
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                if self._max_wait_ms and not self._closed:
                    self._changed.wait_for(lambda: self._closed, self._max_wait_ms / 1000)
                queue = list(self._waiting)
            # Choosing from a long queue takes milliseconds, for which `submit`, on the event loop, must not wait.
            # Meanwhile others may only join at the end.
            present = [waiting for waiting in queue if not waiting.request.is_over]
            present.sort(key=lambda waiting: waiting.turn)
            places = take_batch(
                (len(waiting.job.sequence) for waiting in present),
                self._cost,
                max_bytes=self._max_batch_bytes,
                max_seconds=self._max_batch_ms / 1000,
            )
            chosen = set(places)
            left = [waiting for place, waiting in enumerate(present) if place not in chosen]
            with self._changed:
                self._waiting = deque([*left, *itertools.islice(self._waiting, len(queue), None)])
                self._running = [present[place] for place in places]
                self._turn = max([self._turn, *(waiting.turn for waiting in self._running[:1])])
            if self._running:
                return self._running

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            answers = self._run([waiting.job for waiting in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"expected {len(batch)} answers, got {len(answers)}")
        # BaseException: errors of Rust libraries are no `Exception`, and one batch must never end the worker.
        except BaseException as error:
            self._observer.failed()
            if len(batch) > 1:
                log.warning("a batch of %d failed and is retried one by one: %s", len(batch), type(error).__name__)
                for waiting in batch:
                    # Of a request that has failed already, the other sequences are not worth running.
                    if not waiting.request.is_over:
                        self._answer([waiting])
                return
            log.exception("a sequence of %d steps failed", len(batch[0].job.sequence))
            batch[0].request.fail(InternalError("the model failed on this input; the service's log has details"))
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.request.deliver(waiting.place, answer)
