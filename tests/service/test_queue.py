"""Turns, and how much work waits: kept as sums, which must be those of the list."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.job import Job
from attnserve.service.queue import Queue, Ticket


def put(queue, seconds):
    jobs = [Job(sequence=np.zeros(1, np.int64), positions=np.array([0])) for _ in seconds]
    future = SimpleNamespace(done=lambda: False)
    queue.put(Ticket(future, len(jobs), 0.0), jobs, seconds, 0.0)


def take(queue, keep, num_came=0):
    """As a worker does: look, choose by turn, and meanwhile others come."""
    snapshot = queue.snapshot()
    present = sorted(snapshot, key=lambda waiting: waiting.turn)
    for _ in range(num_came):
        put(queue, [0.25])
    left = [waiting for place, waiting in enumerate(present) if keep(place)]
    chosen = [waiting for place, waiting in enumerate(present) if not keep(place)]
    queue.remove(snapshot, left, chosen[0] if chosen else None)
    return chosen


puts = st.lists(st.floats(0, 1e3), min_size=1, max_size=6)
takes = st.tuples(st.sets(st.integers(0, 12)), st.integers(0, 2))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(puts | takes, max_size=20), st.integers(1, 8))
def test_work_that_is_due_is_the_sum_of_what_waits(steps, num_jobs):
    queue, turn = Queue(), 0
    for step in steps:
        if isinstance(step, list):
            put(queue, step)
        else:
            kept, num_came = step
            chosen = take(queue, kept.__contains__, num_came)
            turn = max([turn, *(waiting.turn for waiting in chosen[:1])])
        waiting = queue.snapshot()
        assert len(queue) == len(waiting)
        for count in {1, num_jobs}:
            due = sum(one.seconds for one in waiting if one.turn < turn + count)
            assert queue.seconds_before(count) == pytest.approx(due, abs=1e-9)


def test_who_came_meanwhile_waits_behind():
    queue = Queue()
    put(queue, [1.0, 2.0, 4.0])
    (first,) = take(queue, lambda place: place > 0, num_came=1)
    assert (first.turn, first.seconds) == (0, 1.0)
    assert [waiting.seconds for waiting in queue.snapshot()] == [2.0, 4.0, 0.25]


def test_clearing_leaves_no_work():
    queue = Queue()
    put(queue, [1.0, 2.0])
    assert len(list(queue.clear())) == 2
    assert (len(queue), queue.seconds_before(9)) == (0, 0)


def test_a_queue_that_is_never_empty_remembers_no_more_than_waits():
    queue = Queue()
    put(queue, [0.1, 0.2, 0.3])
    for _ in range(500):
        put(queue, [0.1, 0.2, 0.3])
        take(queue, lambda place: place >= 3)
    turns = {waiting.turn for waiting in queue.snapshot()}
    # Otherwise every request would add up all turns since the service began, on the event loop.
    assert len(queue._seconds) == len(turns)
