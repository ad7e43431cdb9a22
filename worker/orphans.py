"""Orphans: jobs that nobody alive will go on with."""

from collections.abc import Iterable
from dataclasses import dataclass

from attnserve.worker.leases import Lease


@dataclass(frozen=True, kw_only=True)
class Held:
    """A job that has not ended, as the queue has it."""

    id: str
    version: str | None
    """Of DBOS's application: the job format of the release that ordered it."""
    worker: str | None
    """Who runs it; None if it waits."""


@dataclass(frozen=True, kw_only=True)
class Orphans:
    """What a worker may take over."""

    outdated: frozenset[str]
    """Jobs of an older format, of which no worker is left."""
    workers: frozenset[str]
    """Dead ones that have jobs."""


def find_orphans(jobs: Iterable[Held], alive: Iterable[Lease], *, format: int) -> Orphans:
    """Which jobs have nobody.

    Args:
        jobs: all that have not ended.
        alive: leases of those that are alive.
        format: of the worker that asks. Newer ones are none of its business, nor older ones as long as there is a
            worker of that format.
    """
    names, formats = {lease.name for lease in alive}, {str(lease.format) for lease in alive}
    outdated, dead = set(), set()
    for job in jobs:
        if job.version is None or not job.version.isdecimal() or int(job.version) > format:
            continue
        is_ours = job.version == str(format)
        if not is_ours and job.version in formats:
            continue
        if not is_ours and job.worker not in names:
            outdated.add(job.id)
        if job.worker is not None and job.worker not in names:
            dead.add(job.worker)
    return Orphans(outdated=frozenset(outdated), workers=frozenset(dead))
