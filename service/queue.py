"""The queue in front of an engine: tickets of requests, whose sequences take turns."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from attnserve.service.engine import Answer, Job
from attnserve.service.stages import Stages


class Ticket:
    """The jobs of one request: a single future that is done when all of them are.

    Args:
        num_jobs: answers to wait for.
        since: when the request was queued.
        stages: of the request.
    """

    def __init__(self, num_jobs: int, since: float, stages: Stages | None = None) -> None:
        self.future: Future[list[Answer]] = Future()
        self._answers: list[Answer | None] = [None] * num_jobs
        self._num_missing = num_jobs
        self._since = since
        self._begun: float | None = None
        self._stages = stages

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: failed, or the client left."""
        return self.future.done()

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
            self._finish(lambda: self.future.set_result([answer for answer in self._answers if answer is not None]))

    def fail(self, error: BaseException) -> None:
        """Settle the future with an error, unless it is settled."""
        self._finish(lambda: self.future.set_exception(error))

    def _finish(self, settle: Callable[[], None]) -> None:
        # The client may leave between the check and the call; then there is nobody to tell.
        if not self.is_over and self.future.set_running_or_notify_cancel():
            settle()


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


class Queue:
    """Sequences that wait, and how much work they are. Not for several threads at once: its user has a lock.

    A request's n-th sequence is due n turns after the one being served: thousands in one request do not hold up those
    of others, and since turns only rise nobody waits for ever.
    """

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._seconds: dict[int, float] = {}
        """Work that is due, by turn."""
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, ticket: Ticket, jobs: Sequence[Job], seconds: Sequence[float], now: float) -> None:
        """Append the jobs of a request, which cost `seconds` each if alone."""
        for place, (job, cost) in enumerate(zip(jobs, seconds, strict=True)):
            turn = self._turn + place
            self._waiting.append(
                Waiting(job=job, ticket=ticket, place=place, turn=turn, since=now, seconds=cost),
            )
            self._seconds[turn] = self._seconds.get(turn, 0.0) + cost

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
                self._seconds[waiting.turn] -= waiting.seconds
        came = (self._waiting[place] for place in range(len(snapshot), len(self._waiting)))
        self._waiting = deque([*left, *came])
        if first is not None:
            self._turn = max(self._turn, first.turn)
        if not self._waiting:
            # What is left of sums and differences is rounding.
            self._seconds.clear()

    def clear(self) -> Iterable[Waiting]:
        """Empty the queue, and return who waited."""
        left, self._waiting = self._waiting, deque()
        self._seconds.clear()
        return left
