"""Watching: what jobs say, as they say it. However many watch a job, the queue is asked about it once a second."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from attnserve.jobs import Progress
from attnserve.service.exports.client import Client
from attnserve.service.exports.job import Job, Log
from attnserve.service.problems import Overloaded, Unavailable

POLL_SECONDS = 1.0
# Proxies close connections on which nothing moves, most of them after a minute.
KEEP_ALIVE_SECONDS = 15.0
MAX_WATCHERS = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Said:
    """A line of a job's log."""

    number: int
    """Counted from 0."""
    line: Progress


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The job is over, and this is what became of it."""

    job: Job
    log: Log


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """Nothing new for a while."""


Event = Said | Ended | Quiet


class Watches:
    """All that are watched.

    Args:
        client: asks the queue.
        is_draining: whether the service is about to stop. Then all streams end; their clients go on elsewhere.
        poll_seconds: between two looks at a job.
        keep_alive_seconds: after which a watcher is told that there is nothing to tell.
        max_watchers: at a time, of all jobs.
    """

    def __init__(
        self,
        client: Client,
        *,
        is_draining: Callable[[], bool],
        poll_seconds: float = POLL_SECONDS,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        max_watchers: int = MAX_WATCHERS,
    ) -> None:
        self._client = client
        self._is_draining = is_draining
        self._poll_seconds = poll_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._max_watchers = max_watchers
        self._watches: dict[str, _Watch] = {}

    def check_room(self) -> None:
        """Refuse one more watcher.

        Raises:
            Unavailable: the service is about to stop.
            Overloaded: there are as many as there may be.
        """
        if self._is_draining():
            raise Unavailable("about to stop")
        if sum(watch.num_watchers for watch in self._watches.values()) >= self._max_watchers:
            raise Overloaded(f"{self._max_watchers} clients are watching exports, and no more may", cause="watchers")

    async def follow(self, job_id: str, start: int) -> AsyncGenerator[Event]:
        """What a job says, from line `start` on, until it is over or the service is about to stop.

        Args:
            job_id: of a job that exists.
            start: a number of a line.
        """
        watch = self._join(job_id)
        try:
            while True:
                changed = watch.changed
                while start < len(watch.lines):
                    yield Said(number=start, line=watch.lines[start])
                    start += 1
                if watch.ended is not None:
                    yield Ended(job=watch.ended, log=Log(lines=watch.lines, is_over=True))
                    return
                if watch.is_given_up:
                    return
                try:
                    async with asyncio.timeout(self._keep_alive_seconds):
                        await changed.wait()
                except TimeoutError:
                    yield Quiet()
        finally:
            self._leave(job_id, watch)

    def _join(self, job_id: str) -> "_Watch":
        watch = self._watches.get(job_id)
        if watch is None:
            watch = self._watches[job_id] = _Watch()
            watch.task = asyncio.create_task(self._look(job_id, watch))
        watch.num_watchers += 1
        return watch

    def _leave(self, job_id: str, watch: "_Watch") -> None:
        watch.num_watchers -= 1
        if watch.num_watchers == 0:
            assert watch.task is not None
            watch.task.cancel()
            del self._watches[job_id]

    async def _look(self, job_id: str, watch: "_Watch") -> None:
        """Look at a job until it is over."""
        num_told = 0
        while watch.ended is None and not watch.is_given_up:
            try:
                await self._read(job_id, watch)
            except Unavailable:
                # It comes back, or the watchers leave.
                pass
            except Exception:
                log.exception("export %s cannot be watched", job_id)
                watch.is_given_up = True
            watch.is_given_up |= self._is_draining()
            if len(watch.lines) > num_told or watch.ended is not None or watch.is_given_up:
                num_told = len(watch.lines)
                watch.tell()
            await asyncio.sleep(self._poll_seconds)

    async def _read(self, job_id: str, watch: "_Watch") -> None:
        start = len(watch.lines)
        found = await self._client.ask(lambda queue: queue.read_log(job_id, start))
        watch.lines += found.lines
        if found.is_over:
            watch.ended = await self._client.ask(lambda queue: queue.find(job_id))
            # Deleted by whoever looks after the database.
            watch.is_given_up = watch.ended is None


class _Watch:
    """One job that is watched."""

    def __init__(self) -> None:
        self.lines: tuple[Progress, ...] = ()
        self.ended: Job | None = None
        self.is_given_up = False
        self.num_watchers = 0
        self.changed = asyncio.Event()
        """Set once, at the next change; there is another then."""
        self.task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Wake all watchers."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
