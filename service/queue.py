"""The queue in front of an engine: tickets of requests, whose sequences take turns."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnserve.service.job import Answer, Job
from attnserve.service.stages import Stages


class Ticket:
    """The jobs of one request: a single future that is done when all of them are.

    Args:
        future: of an event loop, where the answers are waited for; the rest of this is called by workers.
        num_jobs: answers to wait for.
        since: when the request was queued.
        stages: of the request.
    """

    def __init__(
        self, future: "asyncio.Future[list[Answer]]", num_jobs: int, since: float, stages: Stages | None = None
    ) -> None:
        self._future = future
        self._is_settled = False
        self._answers: list[Answer | None] = [None] * num_jobs
        self._num_missing = num_jobs
        self._since = since
        self._begun: float | None = None
        self._stages = stages

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: failed, or the client left."""
        return self._is_settled or self._future.done()

    def begin(self, now: float) -> None:
        """One of the jobs is about to run."""
        if self._begun is None:
            self._begun = now
            if self._stages is not None:
                self._stages.add("queue", self._since, now)

    def deliver(self, place: int, answer: Answer, now: float, batch_sequences: int) -> None:
        """Take the answer to one job, which ran in a batch of so many; the last one settles the future."""
        self._answers[place] = answer
        self._num_missing -= 1
        if not self._num_missing:
            if self._stages is not None and self._begun is not None:
                self._stages.add("compute", self._begun, now, batch_sequences=batch_sequences)
            self._settle([answer for answer in self._answers if answer is not None], None)

    def fail(self, error: BaseException) -> None:
        """Settle the future with an error, unless it is settled."""
        self._settle([], error)

    def _settle(self, answers: list[Answer], error: BaseException | None) -> None:
        if self.is_over:
            return
        self._is_settled = True
        # Without its event loop nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._future.get_loop().call_soon_threadsafe(_tell, self._future, answers, error)


def _tell(future: "asyncio.Future[list[Answer]]", answers: list[Answer], error: BaseException | None) -> None:
    # The client may have left in the meantime.
    if future.done():
        return
    if error is None:
        future.set_result(answers)
    else:
        future.set_exception(error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Waiting:
    """One sequence in the queue."""

    job: Job
    ticket: Ticket
    place: int
    """Among the jobs of its request."""
    turn: int
    """When it is due: sequences of several requests take turns."""
    since: float
    """When it was queued, in seconds."""
    seconds: float
    """What it would cost alone, by estimate."""
    due: float
    """When nobody waits any more."""


class Queue:
    """Sequences that wait, and how much work they are. Not for several threads at once: its user has a lock.

    A request's n-th sequence is due n turns after the one being served: thousands in one request do not hold up those
    of others, and since turns only rise nobody waits for ever.
    """

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._seconds: dict[int, float] = {}
        """Work that is due, by turn."""
        self._counts: dict[int, int] = {}
        """Sequences that are due, by turn; no turn has none."""
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(
        self, ticket: Ticket, jobs: Sequence[Job], seconds: Sequence[float], now: float, due: float = math.inf
    ) -> None:
        """Append the jobs of a request, which cost `seconds` each if alone."""
        for place, (job, cost) in enumerate(zip(jobs, seconds, strict=True)):
            turn = self._turn + place
            self._waiting.append(
                Waiting(job=job, ticket=ticket, place=place, turn=turn, since=now, seconds=cost, due=due),
            )
            self._seconds[turn] = self._seconds.get(turn, 0.0) + cost
            self._counts[turn] = self._counts.get(turn, 0) + 1

    def seconds_before(self, num_jobs: int) -> float:
        """Work that is due before the last of a request's jobs, were it put now."""
        last = self._turn + num_jobs - 1
        # Nearly always a single turn: those of requests with one sequence are all due at once.
        return sum(seconds for turn, seconds in self._seconds.items() if turn <= last)

    def snapshot(self) -> list[Waiting]:
        """All that wait, in the order they came."""
        return list(self._waiting)

    def remove(self, snapshot: Sequence[Waiting], left: Sequence[Waiting], first: Waiting | None) -> None:
        """Keep `left` of those in `snapshot`, and all that came since.

        Args:
            snapshot: what `snapshot` returned; the head of the queue.
            left: those of it that go on waiting.
            first: the one whose turn it is.
        """
        kept = set(map(id, left))
        for waiting in snapshot:
            if id(waiting) not in kept:
                self._forget(waiting)
        came = (self._waiting[place] for place in range(len(snapshot), len(self._waiting)))
        self._waiting = deque([*left, *came])
        if first is not None:
            self._turn = max(self._turn, first.turn)

    def clear(self) -> Iterable[Waiting]:
        """Empty the queue, and return who waited."""
        left, self._waiting = self._waiting, deque()
        self._seconds.clear()
        self._counts.clear()
        return left

    def _forget(self, waiting: Waiting) -> None:
        turn = waiting.turn
        self._seconds[turn] -= waiting.seconds
        self._counts[turn] -= 1
        if not self._counts[turn]:
            # A queue that is never empty would keep every turn there ever was, and what rounding has left of it.
            del self._seconds[turn], self._counts[turn]
