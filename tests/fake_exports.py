"""Exports without a database and without a worker: a queue in memory, jobs for it, and a service that asks it."""

import asyncio
import dataclasses
import itertools
import threading

import httpx

from attnserve.certificate import Deviation
from attnserve.jobs import ExportOrder, Outcome, Parity, Progress
from attnserve.service.app import create_app
from attnserve.service.catalogue import Catalogue
from attnserve.service.exports.client import Client
from attnserve.service.exports.desk import Desk
from attnserve.service.exports.gauges import Gauges
from attnserve.service.exports.job import Job, Log, Place, QueueDown, Taken
from attnserve.service.exports.watch import Watches
from attnserve.service.problems import Invalid
from attnserve.service.settings import Settings
from tests.http.conftest import talk

FILES = {"config.json": "1f" * 32, "model.safetensors": "2e" * 32}
PARITY = Parity(
    logits=Deviation(reference=1e-6, allowed=4e-6, measured=2e-6),
    maps=Deviation(reference=1e-7, allowed=4e-7, measured=2e-7),
    reference_logits=3e-6,
    table="length  logits\n     1  2.0e-06",
)
LINES = (
    Progress(step="fetch", fraction=0.0, message="2 files", at="2026-01-01T00:00:00Z"),
    Progress(step="load", fraction=0.02, message="1 layer", at="2026-01-01T00:00:01Z"),
    Progress(step="graph", fraction=0.05, message="traced", at="2026-01-01T00:00:02Z"),
)


def make_order(**fields) -> ExportOrder:
    return ExportOrder(**{"checkpoint": "mine", "files": FILES, "model": "tiny", "version": 2, **fields})


def job_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


class FakeQueue:
    """Keeps jobs in memory; tests move them on by `change`."""

    def __init__(self):
        self.jobs: dict[str, Job] = {}
        self.lines: dict[str, list[Progress]] = {}
        self.is_down = False
        self.before_add = lambda: None
        """Called before the next job is added, by somebody who is faster."""
        self.num_reads = 0
        self.is_closed = False
        # A bulk of tests talks to it from several threads.
        self._clock = itertools.count(1_700_000_000_000)
        self._lock = threading.Lock()

    def add(self, job_id, order, *, key, fingerprint):
        self._check()
        hurry, self.before_add = self.before_add, lambda: None
        hurry()
        with self._lock:
            orders = [job.order for job in self.jobs.values() if job.order is not None and not job.is_over]
            taken = {(other.model, other.version) for other in orders}
            if job_id in self.jobs or (order.model, order.version) in taken:
                raise Taken(job_id)
            created = next(self._clock)
            self.jobs[job_id] = Job(
                id=job_id, state="queued", order=order, created_ms=created, key=key, fingerprint=fingerprint
            )

    def find(self, job_id):
        self._check()
        return self.jobs.get(job_id)

    def find_active(self):
        self._check()
        return [job for job in self.jobs.values() if not job.is_over]

    def list_jobs(self, states, after, limit):
        self._check()
        # Failures and successes are the same to DBOS.
        wide = {*states, "succeeded"} if "failed" in states else {*states}
        wide |= {"failed"} if "succeeded" in states else set()
        ordered = sorted(self.jobs.values(), key=place_of, reverse=True)
        later = [job for job in ordered if after is None or place_of(job) < (after.created_ms, after.id)]
        return [job for job in later if job.state in wide][:limit]

    def read_log(self, job_id, start):
        self._check()
        self.num_reads += 1
        job = self.jobs.get(job_id)
        return Log(lines=tuple(self.lines.get(job_id, [])[start:]), is_over=job is None or job.is_over)

    def cancel(self, job_id):
        self._check()
        if not self.jobs[job_id].is_over:
            self.change(job_id, state="cancelled")

    def close(self):
        self.is_closed = True

    def put(self, number: int, **fields) -> Job:
        """A job as if it had been asked for."""
        defaults = {"state": "queued", "order": make_order(), "created_ms": next(self._clock)}
        job = self.jobs[job_id(number)] = Job(id=job_id(number), **{**defaults, **fields})
        return job

    def say(self, number: int, *lines: Progress) -> None:
        self.lines.setdefault(job_id(number), []).extend(lines)

    def change(self, job_id, **fields) -> None:
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], **fields)

    def succeed(self, number: int) -> None:
        outcome = Outcome(state="succeeded", parity=PARITY)
        self.change(job_id(number), state="succeeded", outcome=outcome, ended_ms=next(self._clock))

    def _check(self):
        if self.is_down:
            raise QueueDown("the database of export jobs does not answer")


def place_of(job: Job) -> tuple[int, str]:
    place = Place(created_ms=job.created_ms, id=job.id)
    return place.created_ms, place.id


def make_desk(open_queue, catalogue, pin=lambda _: FILES, *, max_watchers=2):
    """What the routes of exports ask, without a database and without files."""
    client = Client(open_queue)
    watches = Watches(client, is_draining=lambda: catalogue.is_draining, poll_seconds=0, max_watchers=max_watchers)
    repository = catalogue.repository.folder
    return Desk(client=client, watches=watches, gauges=Gauges(client), repository=repository, pin=pin)


class Service:
    """An app over a queue in memory, and a checkpoint `mine`."""

    def __init__(self, repository, queue, **options):
        self.queue = queue
        self.repository = repository
        self.pinned = []
        self.files = FILES
        settings = Settings(**options)
        self.catalogue = Catalogue(repository, settings)
        desk = make_desk(self.open_queue, self.catalogue, self.pin)
        self.app = create_app(self.catalogue, exports=desk)
        self.client = desk.client

    def open_queue(self):
        return self.queue

    def pin(self, checkpoint):
        if checkpoint not in ("mine", "/trained/mine"):
            raise Invalid.about("checkpoint", f"expected one that was uploaded, got {checkpoint!r}")
        self.pinned.append(checkpoint)
        return self.files

    def talk(self, conversation):
        async def and_close(client):
            async with asyncio.timeout(60):
                await conversation(client)
            await self.client.close()

        talk(self.app, and_close)

    def ask(self, method, path, **options) -> httpx.Response:
        answers = []

        async def conversation(client):
            answers.append(await client.request(method, path, **options))

        self.talk(conversation)
        return answers[0]
