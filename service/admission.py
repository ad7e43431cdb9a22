"""Admission: who is let into the queue, by the work that waits and runs, and by what an idle engine starts at once."""

import copy
import math
from collections.abc import Sequence

from attnserve.service.cost import Cost, Forming
from attnserve.service.problems import Overloaded, TooLarge
from attnserve.service.queue import Queue

# What a batch really took counts this much for what the next is expected to take, and a single one that was far off,
# as when the machine was suspended, counts as this many times what was expected.
NEWEST, FARTHEST = 0.1, 4.0
MAX_RETRY_SECONDS = 60
# Part of the time that is left which the work before a request may take by estimate; those are wrong by a tenth or two.
MARGIN = 0.9


class Admission:
    """Knows what waits and what runs, and how long that takes. Its user, `Batcher`, has a lock.

    Args:
        queue: that sequences wait in.
        cost: what a batch costs.
        max_batch_bytes: estimated memory one batch may need.
        max_batch_seconds: estimated time one batch of several sequences may take.
        max_queue: sequences that may wait, beside those that idle engines are about to start.
        num_engines: none of them at work yet.
    """

    def __init__(
        self,
        queue: Queue,
        cost: Cost,
        *,
        max_batch_bytes: float,
        max_batch_seconds: float,
        max_queue: int,
        num_engines: int,
    ) -> None:
        self._queue = queue
        self._cost = cost
        self._max_batch_bytes = max_batch_bytes
        self._max_batch_seconds = max_batch_seconds
        self._max_queue = max_queue
        self._num_engines = num_engines
        self._forming: list[Forming] = []
        """What each idle engine takes when it is woken: the queue was empty when the first of them came."""
        self._num_leaving = 0
        """Sequences of a batch that is being chosen; nobody joins it any more."""
        self._ends: dict[int, float] = {}
        """When the batches that run should be done, by worker; of those that are idle there is none."""
        self.pace = 1.0
        """Seconds a second of estimated work has taken of late; less than 1 where batches save time."""

    def check_size(self, lengths: Sequence[int], field: str, num_more: int = 0) -> None:
        """Refuse what could never run.

        Args:
            lengths: of the sequences, in steps.
            field: what the client called them.
            num_more: steps that each of them is going to grow by.

        Raises:
            TooLarge: a sequence needs more memory than a batch may, or there are more than the queue holds.
        """
        longest = max(lengths)
        if self._cost.bytes_alone(longest + num_more) > self._max_batch_bytes:
            fits = self._cost.longest_within(self._max_batch_bytes)
            come = f"{longest} and {num_more} more" if num_more else str(longest)
            raise TooLarge.about(
                f"{field}[{lengths.index(longest)}]",
                f"expected at most {fits} steps, which is what fits in {self._max_batch_bytes:.0f} bytes of "
                f"memory here, got {come}",
            )
        if len(lengths) > self._max_queue:
            message = f"expected at most {self._max_queue} sequences in one request, got {len(lengths)}"
            raise TooLarge.about(field, message)

    def check_room(
        self, lengths: Sequence[int], seconds: Sequence[float], now: float, due: float, *, is_begun: bool = False
    ) -> None:
        """Let a request in; its sequences are to be queued next.

        Args:
            lengths: of its sequences, in steps.
            seconds: what each costs if alone.
            now: by the clock.
            due: when nobody waits for it any more.
            is_begun: whether it was let in before, and this is its next part: what is done is not thrown away. There
                are no more of them waiting than were let in at the same time, which is the queue and a batch.

        Raises:
            Overloaded: there is no room for all of them, or they would wait until after they are due.
        """
        is_first = not len(self._queue)
        if is_first:
            self._forming = [self._form() for _ in range(self._num_engines - len(self._ends))]
        forming = [copy.copy(batch) for batch in self._forming]
        num_joining = sum(any(batch.join(length) for batch in forming) for length in lengths)
        # Whoever finds nobody before them runs however late: expectations may be wrong, and nothing else would show it.
        if not is_first and not is_begun:
            self._check(seconds, len(lengths) - num_joining, now, due)
        self._forming = forming

    def look(self) -> None:
        """An engine looks at the queue, to choose its batch."""
        self._num_leaving = self._forming.pop(0).num_sequences if self._forming else 0

    def choose(self, worker: int, *, is_empty: bool) -> None:
        """It has chosen, and its batch is in the queue no more."""
        self._num_leaving = 0
        if not is_empty:
            # Busy from now on; `begin` says until when.
            self._ends[worker] = 0.0

    def begin(self, worker: int, now: float, expected: float) -> None:
        """A batch begins, whose members alone would take so long."""
        self._ends[worker] = now + expected * self.pace

    def learn(self, took: float, expected: float) -> None:
        """A batch has run."""
        if expected > 0:
            self.pace += NEWEST * (min(took / expected, FARTHEST * self.pace) - self.pace)

    def rest(self, worker: int) -> None:
        """An engine has nothing to do."""
        self._ends.pop(worker, None)

    def _form(self) -> Forming:
        return Forming(self._cost, max_bytes=self._max_batch_bytes, max_seconds=self._max_batch_seconds)

    def _check(self, seconds: Sequence[float], num_staying: int, now: float, due: float) -> None:
        num_jobs = len(seconds)
        num_waiting = len(self._queue) - self._num_leaving - sum(batch.num_sequences for batch in self._forming)
        ahead = self._queue.seconds_before(num_jobs)
        running = sum(max(0.0, end - now) for end in tuple(self._ends.values()))
        wait = (ahead * self.pace + running) / self._num_engines
        excess = num_waiting + num_staying - self._max_queue
        if num_staying and excess > 0:
            raise _overloaded(
                f"{num_waiting} sequences are waiting and at most {self._max_queue} may; {num_jobs} more were sent",
                wait * excess / max(num_waiting, 1),
                "queue_full",
            )
        # Who is in the next batch of an idle engine waits for nobody but those in it.
        wait = wait if num_staying else 0.0
        # Others share the last batch, and it is done when all of them are.
        last = max(max(seconds), min(self._max_batch_seconds, ahead + sum(seconds)))
        seconds_left = due - now
        late = wait + last * self.pace - MARGIN * seconds_left
        # Whoever is let in to be told later that it took too long has cost others their turn.
        if late > 0:
            raise _overloaded(
                f"{len(self._queue)} sequences are waiting, about {1000 * wait:.0f} ms of work; "
                f"the timeout leaves {1000 * seconds_left:.0f}",
                late,
                "too_late",
            )


def _overloaded(detail: str, seconds: float, cause: str) -> Overloaded:
    """Come back when there may be room, by what is waiting."""
    # Bounded first: infinity, which large estimates add up to, has no ceiling.
    retry_after = math.ceil(min(max(seconds, 1), MAX_RETRY_SECONDS))
    return Overloaded(detail, headers={"Retry-After": str(retry_after)}, cause=cause)
