"""The load itself: requests sent when they are due, whatever became of earlier ones, and what became of each.

All times are of the event loop's clock, so a loop with a clock of its own makes every figure exact.
"""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

# Of a closed load, a connection that met an error: against a server that is gone it would do nothing but fail, as fast
# as this machine can.
PAUSE_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer that came in whole."""

    status: int
    server_ms: Mapping[str, float]
    """Milliseconds by name, as the server gave them."""


class Unanswered(Exception):
    """There was no answer, for a reason that has a name."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one request; times in seconds since the load began."""

    due_s: float
    """When it should have been sent. Latency counts from here: a request that the client sent late, because the
    server made it wait or for any other reason, is late all the same."""
    sent_s: float
    ended_s: float
    status: int | None
    """None: no answer, and `error` says why."""
    error: str | None
    server_ms: Mapping[str, float]

    @property
    def latency_ms(self) -> float:
        """From when it was due to the end of its answer."""
        return 1000 * (self.ended_s - self.due_s)

    @property
    def lag_ms(self) -> float:
        """How late it was sent."""
        return 1000 * (self.sent_s - self.due_s)


class Load:
    """One run.

    Args:
        ask: sends a body and returns what was answered; raises `Unanswered`.
        bodies: sent in turn.
        timeout_s: how long after it was due a request is given up. So the run ends, whatever the server does.
        notify: called after every outcome.
    """

    def __init__(
        self,
        ask: Callable[[bytes], Awaitable[Reply]],
        bodies: Sequence[bytes],
        *,
        timeout_s: float,
        notify: Callable[[], object] = lambda: None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        """In the order in which they ended; there too if the run was interrupted."""
        self.elapsed_s = 0.0
        """How long the run took."""
        self._ask = ask
        self._bodies = itertools.cycle(bodies)
        self._timeout_s = timeout_s
        self._notify = notify
        self._begin = math.nan

    async def offer(self, arrivals_s: Iterable[float]) -> None:
        """Open loop: send at the given seconds, ascending, and wait for the last answer."""
        loop = asyncio.get_running_loop()
        self._begin = loop.time()
        try:
            async with asyncio.TaskGroup() as tasks:
                for due_s in arrivals_s:
                    # Also when it is late already: without a turn for the loop no answer would ever be read.
                    await asyncio.sleep(max(0.0, self._begin + due_s - loop.time()))
                    tasks.create_task(self._follow(due_s))
        finally:
            self.elapsed_s = loop.time() - self._begin

    async def saturate(self, num_connections: int, seconds: float) -> None:
        """Closed loop: each connection sends its next request when it has its answer, until `seconds` are over."""
        loop = asyncio.get_running_loop()
        self._begin = loop.time()

        async def keep_asking() -> None:
            while (now_s := loop.time() - self._begin) < seconds:
                if (await self._follow(now_s)).error is not None:
                    await asyncio.sleep(PAUSE_S)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(num_connections):
                    tasks.create_task(keep_asking())
        finally:
            self.elapsed_s = loop.time() - self._begin

    async def _follow(self, due_s: float) -> Outcome:
        """Send one request and note what became of it; cancelled, note that too."""
        sent_s = asyncio.get_running_loop().time() - self._begin
        reply, error = None, None
        try:
            if sent_s - due_s >= self._timeout_s:
                # Nobody waits for it any more. Sent all the same, it would only make the next ones later still.
                raise Unanswered("unsent")
            async with asyncio.timeout_at(self._begin + due_s + self._timeout_s):
                reply = await self._ask(next(self._bodies))
        except TimeoutError:
            error = "timeout"
        except Unanswered as unanswered:
            error = unanswered.kind
        except asyncio.CancelledError:
            # Those that still waited when somebody lost patience are the slowest of all: leaving them out would show a
            # stalled server as a fast one.
            error = "interrupted"
            raise
        finally:
            outcome = Outcome(
                due_s=due_s,
                sent_s=sent_s,
                ended_s=asyncio.get_running_loop().time() - self._begin,
                status=None if reply is None else reply.status,
                error=error,
                server_ms={} if reply is None else reply.server_ms,
            )
            self.outcomes.append(outcome)
            self._notify()
        return outcome
