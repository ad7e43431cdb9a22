"""`Job`: an export as the service sees it, and `Queue`: whom the service asks about jobs."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from attnserve.jobs import ExportOrder, Outcome, Progress
from attnserve.records import to_json

ENDED = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job does not leave."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One export: what was asked for, and what became of it. Times are in milliseconds since 1970."""

    id: str
    state: str
    """One of `attnserve.jobs.STATES`."""
    order: ExportOrder | None
    """None of a job that a newer release has ordered."""
    created_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    worker: str | None = None
    """Name of the one that has it, or had it last."""
    key: str | None = None
    """Name of the API key that asked for it."""
    fingerprint: str | None = None
    """Of the request that asked for it."""
    progress: Progress | None = None
    outcome: Outcome | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing will become of it any more."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a list of jobs, newest first, goes on: after this one."""

    created_ms: int
    id: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a job has said, from some line on."""

    lines: tuple[Progress, ...]
    is_over: bool
    """Whether the job has ended, so that no more will come."""


class QueueDown(Exception):
    """The queue cannot be asked now; the message, which is for clients, says why in general."""


class Taken(Exception):
    """Another job is under way to the same version, or has the same id."""


class Queue(Protocol):
    """Durable export jobs. Every method may block, and raises `QueueDown`."""

    def add(self, job_id: str, order: ExportOrder, *, key: str | None, fingerprint: str) -> None:
        """Queue a job.

        Raises:
            Taken: there is one of that id, or one under way to that version of that model.
        """

    def find(self, job_id: str) -> Job | None:
        """A job by its id."""

    def find_active(self) -> list[Job]:
        """Those that are queued or running, in no order."""

    def list_jobs(self, states: Collection[str], after: Place | None, limit: int) -> list[Job]:
        """The next jobs, newest first. Some of another state may be among them."""

    def read_log(self, job_id: str, start: int) -> Log:
        """What a job has said, from line `start` on."""

    def cancel(self, job_id: str) -> None:
        """Have a job stopped; nothing happens to one that is over."""

    def close(self) -> None:
        """Ask nothing any more."""


def describe_job(job: Job, log: Log | None = None) -> dict[str, Any]:
    """A job as JSON; the longer parts (log, hashes of files, tables) only where a log is given."""
    order, outcome, progress = job.order, job.outcome, job.progress
    if log is not None and log.lines:
        progress = log.lines[-1]
    fraction = 0.0 if progress is None else progress.fraction
    parity = None if outcome is None else outcome.parity
    described: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "model": None if order is None else order.model,
        "version": None if order is None else order.version,
        "checkpoint": None if order is None else order.checkpoint,
        "precision": None if order is None else order.precision,
        "options": None if order is None else {"portable": order.portable, "top_k": order.top_k},
        "activate": None if order is None else order.activate,
        "key": job.key,
        "created": _write_time(job.created_ms),
        "started": _write_time(job.started_ms),
        "ended": _write_time(job.ended_ms),
        "worker": job.worker,
        "step": _find_step(job, progress),
        "progress": 1.0 if job.state == "succeeded" else fraction,
        "message": None if progress is None or job.is_over else progress.message,
        "reason": None if outcome is None else outcome.reason,
        "parity": None if parity is None else {key: value for key, value in to_json(parity).items() if key != "table"},
    }
    if log is not None:
        described |= {
            "files": None if order is None else order.files,
            "table": None if parity is None else parity.table,
            "report": None if outcome is None else outcome.report,
            "log": [to_json(line) for line in log.lines],
        }
    return described


def _find_step(job: Job, progress: Progress | None) -> str | None:
    """Where a job is, or where it failed or was cancelled."""
    if job.outcome is not None:
        return job.outcome.step
    return None if progress is None or job.state == "queued" else progress.step


def _write_time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
