"""Orphans: jobs that nobody alive will go on with."""

from collections.abc import Iterable
from dataclasses import dataclass

from attnserve.worker.leases import Lease


@dataclass(frozen=True, kw_only=True)
class Held:
    """A job that has not ended, as the queue has it."""

    id: str
    version: str | None
    """Of DBOS's application, which is the job format of the release that took it up or was asked for it."""
    worker: str | None
    """Who runs it; None if it waits."""


@dataclass(frozen=True, kw_only=True)
class Orphans:
    """What a worker may take over."""

    outdated: frozenset[str]
    """Jobs of older formats, for which no worker is left."""
    workers: frozenset[str]
    """Dead ones whose jobs wait for somebody to take them up."""


def find_orphans(jobs: Iterable[Held], alive: Iterable[Lease], *, format: int) -> Orphans:
    """Which jobs have nobody.

    Args:
        jobs: all that have not ended.
        alive: leases of those that are alive.
        format: of the worker that asks; jobs of newer ones are none of its business.
    """
    names, formats = {lease.name for lease in alive}, {str(lease.format) for lease in alive}
    ours = [job for job in jobs if job.version is None or _is_at_most(job.version, format)]
    lost = [job for job in ours if job.worker is not None and job.worker not in names]
    waiting = [job for job in ours if job.worker is None and job.version not in {None, *formats}]
    outdated = {job.id for job in (*lost, *waiting) if job.version != str(format)}
    return Orphans(outdated=frozenset(outdated), workers=frozenset(job.worker for job in lost if job.worker))


def _is_at_most(version: str, format: int) -> bool:
    return version.isdecimal() and int(version) <= format
