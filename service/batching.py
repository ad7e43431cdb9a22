"""`Batcher`: one queue, and one worker thread per engine. No polling, no sleeps.

A free engine takes what is waiting now; requests take turns. The workers cannot end without failing every waiting
future.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from attnserve.service.admission import Admission
from attnserve.service.cost import Cost, take_batch
from attnserve.service.job import Answer, Job
from attnserve.service.observer import NOBODY, Observer
from attnserve.service.problems import InternalError, Problem, Unavailable
from attnserve.service.queue import Queue, Ticket, Waiting
from attnserve.service.soundness import Soundness
from attnserve.service.stages import Stages

log = logging.getLogger(__name__)

Run = Callable[[Sequence[Job]], list[Answer]]

STOPPED = "the model has stopped"


class Batcher:
    """Queue in front of an engine.

    Args:
        run: answers a batch; called from the worker threads only.
        cost: what a batch costs.
        max_batch_bytes: estimated memory one batch may need.
        max_queue: sequences that may wait.
        max_batch_ms: estimated time one batch of several sequences may take.
        max_wait_ms: how long a free engine waits for company.
        num_workers: threads that run batches, each its own.
        name: of the worker threads.
        observer: told how long sequences waited, and of batches that failed.
        is_sound: asked after a sequence has failed alone whether others can still be answered.
        on_lost: told when they cannot; no work is taken any more.
        on_idle: called, in a worker's thread, when there has been work and then none for a while.
        idle_seconds: for how long.
        clock: seconds; that of deadlines.
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
        num_workers: int = 1,
        name: str = "engine",
        observer: Observer = NOBODY,
        is_sound: Callable[[], bool] = lambda: True,
        on_lost: Callable[[], None] = lambda: None,
        on_idle: Callable[[], None] = lambda: None,
        idle_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_batch_bytes = max_batch_bytes
        self._max_batch_seconds = max_batch_ms / 1000
        self._max_wait_ms = max_wait_ms
        self._observer = observer
        self._soundness = Soundness(is_sound, on_lost)
        self._on_idle = on_idle
        self._idle_seconds = idle_seconds
        self._has_worked = False
        self._clock = clock
        self._queue = Queue()
        self._admission = Admission(
            self._queue,
            cost,
            max_batch_bytes=max_batch_bytes,
            max_batch_seconds=self._max_batch_seconds,
            max_queue=max_queue,
            num_engines=num_workers,
        )
        self._changed = threading.Condition()
        # Choosing who runs next takes a look at the whole queue, one worker after the other.
        self._choosing = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_open(self) -> bool:
        """Whether work is taken: not closed, and the workers are alive."""
        return not self._closed

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._queue)

    async def submit(self, jobs: Sequence[Job], **options: Any) -> list[Answer]:
        """The answers to the jobs of one request, in their order; arguments and errors are those of `enqueue`."""
        return await self.enqueue(jobs, **options)

    def enqueue(
        self,
        jobs: Sequence[Job],
        *,
        due: float | None = None,
        stages: Stages | None = None,
        is_begun: bool = False,
        num_more: int = 0,
        field: str = "sequences",
    ) -> "asyncio.Future[list[Answer]]":
        """Queue the jobs of one request; what is returned are all answers, in their order.

        To be called from an event loop. If the future is cancelled, nobody waits any more.

        Args:
            jobs: at least one.
            due: when nobody waits any more, by the clock.
            stages: told how long they waited and ran.
            is_begun: whether the request has been let in before, and goes on: then the queue has room.
            num_more: steps that every sequence is going to grow by until the request is done.
            field: what the client called the sequences.

        Raises:
            TooLarge: a sequence needs more memory than a batch may, or there are more than the queue holds.
            Overloaded: the queue has no room for all of them, or they would wait until after they are due; none is
                queued.
            Unavailable: closed.
        """
        lengths = [len(job.sequence) for job in jobs]
        self._admission.check_size(lengths, field, num_more)
        seconds = [self._cost.seconds_alone(length) for length in lengths]
        now, due = self._clock(), math.inf if due is None else due
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Answer]] = loop.create_future()
        ticket = Ticket(future, len(jobs), now, stages)
        with self._changed:
            if self._closed:
                raise Unavailable(STOPPED)
            self._admission.check_room(lengths, seconds, now, due, is_begun=is_begun)
            self._queue.put(ticket, jobs, seconds, now, due)
        # When the event loop has been through everything that has come: a worker that is woken by the first of sixteen
        # requests takes it alone, and the interpreter's lock with it.
        loop.call_soon(self._wake)
        return future

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """Stop taking work; the workers finish what is queued and end by themselves."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        running: list[Waiting] = []
        try:
            while running := self._next_batch():
                self._answer(running)
                # Whatever became of it.
                self._rest()
                # Who waits for the next batch does not keep the answers of this one.
                running.clear()
        finally:
            # Reached by `close`, or by an error that should not exist; either way nobody is left waiting.
            self._fail_all(Unavailable(STOPPED), running)

    def _fail_all(self, problem: Problem, running: Sequence[Waiting] = ()) -> None:
        with self._changed:
            self._closed = True
            left = [*running, *self._queue.clear()]
            self._changed.notify_all()
        for waiting in left:
            waiting.ticket.fail(problem)

    def _next_batch(self) -> list[Waiting]:
        """Wait for work and take what should run together; nothing when closed and empty."""
        with self._choosing:
            while True:
                self._await_work()
                with self._changed:
                    if not len(self._queue):
                        return []
                    if self._max_wait_ms and not self._closed:
                        self._changed.wait_for(lambda: self._closed, self._max_wait_ms / 1000)
                    snapshot = self._queue.snapshot()
                    self._admission.look()
                # Choosing from a long queue takes milliseconds, for which `submit`, on the event loop, must not wait.
                # Meanwhile others may only join at the end.
                present = [waiting for waiting in snapshot if not waiting.ticket.is_over]
                present.sort(key=lambda waiting: waiting.turn)
                present = self._drop_late(present)
                places = take_batch(
                    (len(waiting.job.sequence) for waiting in present),
                    self._cost,
                    max_bytes=self._max_batch_bytes,
                    max_seconds=self._max_batch_seconds,
                )
                chosen = set(places)
                left = [waiting for place, waiting in enumerate(present) if place not in chosen]
                batch = [present[place] for place in places]
                with self._changed:
                    self._queue.remove(snapshot, left, batch[0] if batch else None)
                    self._admission.choose(threading.get_ident(), is_empty=not batch)
                if batch:
                    return batch

    def _await_work(self) -> None:
        """Until something is queued, or the end."""
        while True:
            with self._changed:
                patience = self._idle_seconds if self._has_worked else None
                if self._changed.wait_for(lambda: self._closed or len(self._queue), patience):
                    return
                self._has_worked = False
            # Not under the lock, for which `enqueue` would wait on the event loop.
            try:
                self._on_idle()
            # Nothing depends on it; what is wrong shows in the next batch.
            except Exception:
                log.exception("what is done when nothing is to do failed")

    def _drop_late(self, present: list[Waiting]) -> list[Waiting]:
        """Leave out those who cannot be answered in time, if there are others; their own deadline tells them."""
        now, pace = self._clock(), self._admission.pace
        hopeful = [waiting for waiting in present if now + waiting.seconds * pace <= waiting.due]
        return hopeful or present

    def _answer(self, batch: list[Waiting]) -> None:
        self._has_worked = True
        begin = self._clock()
        expected = sum(waiting.seconds for waiting in batch)
        self._admission.begin(threading.get_ident(), begin, expected)
        for waiting in batch:
            waiting.ticket.begin(begin)
            self._observer.waited(begin - waiting.since)
        try:
            answers = self._run([waiting.job for waiting in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"expected {len(batch)} answers, got {len(answers)}")
        # BaseException: errors of Rust libraries are no `Exception`, and one batch must never end the worker.
        except BaseException as error:
            self._retry(batch, error)
            return
        now = self._clock()
        self._admission.learn(now - begin, expected)
        # Before anybody is told, and asks again at once.
        self._rest()
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.ticket.deliver(waiting.place, answer, now, len(batch))

    def _rest(self) -> None:
        with self._changed:
            self._admission.rest(threading.get_ident())

    def _retry(self, batch: list[Waiting], error: BaseException) -> None:
        """Run the sequences of a batch that failed one by one, so that only the culprit fails."""
        self._observer.failed()
        if len(batch) > 1:
            log.warning("a batch of %d failed and is retried one by one: %s", len(batch), type(error).__name__)
            for waiting in batch:
                # Of a request that has failed already, the other sequences are not worth running.
                if not waiting.ticket.is_over:
                    self._answer([waiting])
            return
        (culprit,) = batch
        log.error("a sequence of %d steps failed", len(culprit.job.sequence), exc_info=error)
        culprit.ticket.fail(self.judge())

    def judge(self) -> Problem:
        """Ask whether the device is sound, after it has failed: what to tell those for whom it did.

        If it is not, nobody else is kept waiting, and no work is taken any more.
        """
        if self._soundness.ask():
            return InternalError("the model failed on this input; the service's log has details")
        problem = Unavailable("the device is lost, and the service about to end")
        self._fail_all(problem)
        return problem
