"""Which jobs a worker may take over."""

import pytest

from attnserve.worker.leases import Lease
from attnserve.worker.orphans import Held, find_orphans

ALIVE = [Lease(name="me", format=2, beats=1), Lease(name="peer", format=2, beats=1)]


def held(version="2", worker=None):
    return Held(id="job", version=version, worker=worker)


@pytest.mark.parametrize(
    ("job", "alive", "outdated", "workers"),
    [
        # Of workers that are there, nothing.
        (held(worker="me"), ALIVE, False, []),
        (held(worker="peer"), ALIVE, False, []),
        (held(), ALIVE, False, []),
        # Of one that is not, its job.
        (held(worker="dead"), ALIVE, False, ["dead"]),
        # An older release's, once nobody is left who runs it.
        (held("1", "dead"), ALIVE, True, ["dead"]),
        (held("1"), ALIVE, True, []),
        (held("1"), [*ALIVE, Lease(name="old", format=1, beats=1)], False, []),
        (held("1", "old"), [*ALIVE, Lease(name="old", format=1, beats=1)], False, []),
        (held("1", "dead"), [*ALIVE, Lease(name="old", format=1, beats=1)], False, []),
        # A newer one's, never.
        (held("3", "dead"), ALIVE, False, []),
        (held("3"), ALIVE, False, []),
        # Not of our making.
        (held("abc", "dead"), ALIVE, False, []),
        (held(None), ALIVE, False, []),
        # A number is no text: 10 is newer than 2.
        (held("10", "dead"), ALIVE, False, []),
    ],
)
def test_what_has_nobody_is_found(job, alive, outdated, workers):
    found = find_orphans([job], alive, format=2)
    assert (found.outdated, found.workers) == (frozenset({"job"} if outdated else ()), frozenset(workers))
