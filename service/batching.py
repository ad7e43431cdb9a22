"""`Batcher`: one queue and one worker thread per engine. No polling, no sleeps.

A free engine takes what is waiting now. The worker cannot end without failing every waiting future.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from attnserve.service.cost import Cost, Shape, take_batch
from attnserve.service.engine import Answer, Job
from attnserve.service.problems import InternalError, Overloaded, Unavailable, too_large

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
        if not self.num_missing and not self.is_over:
            self._finish(lambda: self.future.set_result([answer for answer in self.answers if answer is not None]))

    def fail(self, error: BaseException) -> None:
        self._finish(lambda: self.future.set_exception(error))

    def _finish(self, settle: Callable[[], None]) -> None:
        # The client may leave between the check and the call; then there is nobody to tell.
        if self.future.set_running_or_notify_cancel():
            settle()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """One sequence in the queue."""

    job: Job
    request: _Request
    place: int


class Batcher:
    """Queue in front of an engine.

    Args:
        run: answers a batch; called from the worker thread only.
        cost: what a batch costs.
        max_batch_bytes: estimated memory one batch may need.
        max_queue: sequences that may wait.
        max_wait_ms: how long a free engine waits for company.
        name: of the worker thread.
    """

    def __init__(
        self,
        run: Run,
        cost: Cost,
        *,
        max_batch_bytes: float,
        max_queue: int,
        max_wait_ms: float = 0.0,
        name: str = "engine",
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_batch_bytes = max_batch_bytes
        self._max_queue = max_queue
        self._max_wait_ms = max_wait_ms
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def submit(self, jobs: Sequence[Job]) -> list[Answer]:
        """Queue the jobs of one request and wait for all answers, in their order.

        Raises:
            TooLarge: a sequence needs more memory than a batch may, or there are more than the queue holds.
            Overloaded: the queue has no room for all of them; none is queued.
            Unavailable: closed.
        """
        for index, job in enumerate(jobs):
            if self._cost.bytes(Shape().add(len(job.tokens))) > self._max_batch_bytes:
                longest = self._cost.longest_within(self._max_batch_bytes)
                raise too_large(
                    f"sequences[{index}]",
                    f"expected at most {longest} steps, which is what fits in {self._max_batch_bytes:.0f} bytes of "
                    f"memory here, got {len(job.tokens)}",
                )
        if len(jobs) > self._max_queue:
            raise too_large("sequences", f"expected at most {self._max_queue} in one request, got {len(jobs)}")
        request = _Request(len(jobs))
        with self._changed:
            if self._closed:
                raise Unavailable("the model is shutting down", headers={"Retry-After": "1"})
            if len(self._waiting) + len(jobs) > self._max_queue:
                raise Overloaded(
                    f"{len(self._waiting)} sequences are waiting and at most {self._max_queue} may; "
                    f"{len(jobs)} more were sent",
                    headers={"Retry-After": "1"},
                )
            self._waiting.extend(_Waiting(job=job, request=request, place=place) for place, job in enumerate(jobs))
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
            while (batch := self._next_batch()) is not None:
                self._answer(batch)
        finally:
            # Reached by `close`, or by an error that should not exist; either way nobody is left waiting.
            with self._changed:
                self._closed = True
                left, self._waiting = self._waiting, deque()
            for waiting in left:
                if not waiting.request.is_over:
                    waiting.request.fail(Unavailable("the model stopped", headers={"Retry-After": "1"}))

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for work and take what should run together; None when closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            if self._max_wait_ms and not self._closed:
                deadline = time.monotonic() + self._max_wait_ms / 1000
                while (left := deadline - time.monotonic()) > 0 and not self._closed:
                    self._changed.wait(left)
            queue = [waiting for waiting in self._waiting if not waiting.request.is_over]
            places = take_batch((len(waiting.job.tokens) for waiting in queue), self._cost, self._max_batch_bytes)
            chosen = set(places)
            self._waiting = deque(waiting for place, waiting in enumerate(queue) if place not in chosen)
            return [queue[place] for place in places]

    def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        try:
            answers = self._run([waiting.job for waiting in batch])
        # BaseException: errors of Rust libraries are no `Exception`, and one batch must never end the worker.
        except BaseException as error:
            if len(batch) > 1:
                log.warning("a batch of %d failed and is retried one by one: %s", len(batch), type(error).__name__)
                for waiting in batch:
                    self._answer([waiting])
                return
            log.exception("a sequence of %d steps failed", len(batch[0].job.tokens))
            if not batch[0].request.is_over:
                batch[0].request.fail(InternalError("the model failed on this input; the service's log has details"))
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.request.is_over:
                waiting.request.deliver(waiting.place, answer)
