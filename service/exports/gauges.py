"""Gauges: how many export jobs wait and run, for Prometheus. The queue is asked when somebody looks, off the loop."""

import asyncio
import time
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from attnserve.service.exports.client import Client
from attnserve.service.exports.job import Job
from attnserve.service.problems import Problem

# Several may look at once, and a scrape is not to wait for a slow database.
FRESH_SECONDS = 5.0
PATIENCE_SECONDS = 2.0


class Gauges(Collector):
    """What is true of the queue, as last seen; nothing where it could not be asked.

    Args:
        client: asks the queue.
        is_used: whether there may be a queue. Where nobody exports, nothing is imported and nobody asked.
        clock: seconds since 1970.
    """

    def __init__(
        self, client: Client, *, is_used: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._is_used = is_used
        self._clock = clock
        self._jobs: list[Job] | None = None
        self._seen = 0.0

    async def refresh(self) -> None:
        """Ask the queue, unless that was done just now."""
        if not self._is_used() or self._clock() - self._seen < FRESH_SECONDS:
            return
        self._seen = self._clock()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._jobs = await self._client.ask(lambda queue: queue.find_active())
        except (TimeoutError, Problem):
            self._jobs = None

    def collect(self) -> Iterator[Metric]:
        """The samples."""
        jobs = GaugeMetricFamily("export_jobs", "Export jobs that are queued or run.", labels=("state",))
        age = GaugeMetricFamily("export_oldest_queued_seconds", "How long the oldest queued export job has waited.")
        if self._jobs is not None:
            for state in ("queued", "running"):
                jobs.add_metric((state,), sum(job.state == state for job in self._jobs))
            created = [job.created_ms for job in self._jobs if job.state == "queued"]
            age.add_metric((), max(0.0, self._clock() - min(created) / 1000) if created else 0.0)
        yield from (jobs, age)
