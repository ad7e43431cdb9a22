"""Listing: jobs by state and model, newest first, page by page."""

from dataclasses import dataclass

from attnserve.jobs import STATES
from attnserve.service.exports.job import Job, Place, Queue
from attnserve.service.exports.request import ListRequest

# What matches may be rare, and a request is answered all the same: with fewer jobs, and where to go on.
MAX_LOOKED_AT = 1000
BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some jobs, and where the list goes on; None is nowhere."""

    jobs: tuple[Job, ...]
    next: Place | None


def list_jobs(queue: Queue, asked: ListRequest) -> Page:
    """The next page. It may be short, or empty, where there are more: only `next` says that it was the last."""
    states = STATES if asked.state is None else (asked.state,)
    found: list[Job] = []
    place, num_looked_at = asked.after, 0
    while num_looked_at < MAX_LOOKED_AT:
        batch = queue.list_jobs(states, place, BATCH)
        is_last = len(batch) < BATCH
        for number, job in enumerate(batch, 1):
            place = Place(created_ms=job.created_ms, id=job.id)
            if _is_wanted(job, asked):
                found.append(job)
                if len(found) == asked.limit:
                    return Page(jobs=tuple(found), next=None if is_last and number == len(batch) else place)
        if is_last:
            return Page(jobs=tuple(found), next=None)
        num_looked_at += len(batch)
    return Page(jobs=tuple(found), next=place)


def _is_wanted(job: Job, asked: ListRequest) -> bool:
    has_state = asked.state is None or job.state == asked.state
    return has_state and (asked.model is None or (job.order is not None and job.order.model == asked.model))
