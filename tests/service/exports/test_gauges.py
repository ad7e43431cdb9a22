"""How many jobs wait and run, as Prometheus sees it."""

import asyncio
import itertools

from attnserve.service.exports.client import Client
from attnserve.service.exports.gauges import FRESH_SECONDS, Gauges


def samples(gauges):
    return {
        (sample.name, sample.labels.get("state")): sample.value
        for metric in gauges.collect()
        for sample in metric.samples
    }


def look(queue, *steps, **options):
    """What is seen after each of some steps, in one event loop."""
    seen = []

    async def run():
        client = Client(lambda: queue)
        gauges = Gauges(client, **options)
        for step in steps:
            step()
            await gauges.refresh()
            seen.append(samples(gauges))
        await client.close()

    asyncio.run(run())
    return seen


def test_jobs_are_counted_by_state(queue):
    queue.put(1, created_ms=100_000)
    queue.put(2, created_ms=90_000)
    queue.put(3, state="running", created_ms=50_000)
    queue.put(4, state="failed")
    (seen,) = look(queue, lambda: None, clock=lambda: 100.5)
    assert seen == {
        ("export_jobs", "queued"): 2,
        ("export_jobs", "running"): 1,
        ("export_oldest_queued_seconds", None): 10.5,
    }


def test_an_empty_queue_has_no_age(queue):
    queue.put(1, state="running")
    (seen,) = look(queue, lambda: None)
    assert seen[("export_oldest_queued_seconds", None)] == 0


def test_the_queue_is_not_asked_again_at_once(queue):
    seconds = itertools.count(100.0, FRESH_SECONDS / 4)

    def add():
        queue.put(len(queue.jobs))

    seen = look(queue, *[add] * 6, clock=lambda: next(seconds))
    numbers = [each[("export_jobs", "queued")] for each in seen]
    assert numbers[0] == 1
    assert numbers == sorted(numbers)
    assert 1 < len(set(numbers)) < 6


def test_a_queue_that_is_down_has_no_numbers(queue):
    seconds = itertools.count(100.0, FRESH_SECONDS)

    def fall():
        queue.is_down = True

    before, after = look(queue, lambda: None, fall, clock=lambda: next(seconds))
    assert before
    assert not after


def test_where_nobody_exports_nobody_is_asked(queue):
    queue.is_down = True
    assert look(queue, lambda: None, is_used=lambda: False) == [{}]
