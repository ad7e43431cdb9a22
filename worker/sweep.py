"""Sweeping: what killed workers left is removed once its job has ended."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from attnserve.publish import ABANDONED_SECONDS
from attnserve.worker.places import Places

# Of DBOS.
ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
# Whoever made it may be about to put a version into it.
EMPTY_SECONDS = 60


def sweep(
    places: Places, find_states: Callable[[Collection[str]], Mapping[str, str]], *, now: float
) -> tuple[str, ...]:
    """Remove what jobs have left that have ended, or of which the database has known nothing for a day.

    Args:
        places: where to look.
        find_states: DBOS's state by job, of those it knows.
        now: seconds since 1970.

    Returns:
        These jobs.
    """
    # In this order: a job is in the database before it leaves anything.
    jobs = sorted(places.find_jobs())
    states = find_states(jobs) if jobs else {}
    swept = tuple(job for job in jobs if _is_over(places, job, states.get(job), now))
    for job in swept:
        places.clear(job)
    for folder in places.find_empty_models():
        # Missing or not empty: somebody else was here.
        with suppress(OSError):
            if now - folder.stat().st_mtime > EMPTY_SECONDS:
                folder.rmdir()
    return swept


def _is_over(places: Places, job: str, state: str | None, now: float) -> bool:
    if state is None:
        return now - places.last_change(job) > ABANDONED_SECONDS
    return state in ENDED
