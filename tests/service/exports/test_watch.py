"""What watchers of a job are told, and what that costs the queue."""

import asyncio

import pytest

from attnserve.service.exports.client import Client
from attnserve.service.exports.watch import Ended, Quiet, Said, Watches
from attnserve.service.problems import Overloaded, Unavailable
from tests.fake_exports import LINES, job_id

ID = job_id(1)


@pytest.fixture
def watching(queue):
    """Run a test of watches of a job that runs, in an event loop with them."""
    queue.put(1, state="running")

    def run(test, **options):
        async def in_loop():
            client = Client(lambda: queue)
            watches = Watches(client, **{"is_draining": lambda: False, "poll_seconds": 0, **options})
            async with asyncio.timeout(60):
                await test(watches)
            await client.close()

        asyncio.run(in_loop())

    return run


async def take(events, number):
    return [await anext(events) for _ in range(number)]


async def take_all(events):
    return [event async for event in events]


def said(*numbers):
    return [Said(number=number, line=LINES[number]) for number in numbers]


def test_all_is_told_in_order_as_it_is_said(watching, queue):
    queue.say(1, LINES[0])

    async def test(watches):
        events = watches.follow(ID, 0)
        assert await take(events, 1) == said(0)
        queue.say(1, *LINES[1:])
        assert await take(events, 2) == said(1, 2)
        queue.succeed(1)
        (end,) = await take_all(events)
        assert isinstance(end, Ended)
        assert end.job == queue.jobs[ID]
        assert end.log.lines == LINES

    watching(test)


def test_of_a_job_that_is_over_all_is_told_at_once(watching, queue):
    queue.say(1, *LINES)
    queue.succeed(1)

    async def test(watches):
        *lines, end = await take_all(watches.follow(ID, 0))
        assert lines == said(0, 1, 2)
        assert end.job.state == "succeeded"

    watching(test)


@pytest.mark.parametrize("start", [1, 3, 40])
def test_who_comes_again_is_told_what_is_new(watching, queue, start):
    queue.say(1, *LINES)
    queue.succeed(1)

    async def test(watches):
        *lines, end = await take_all(watches.follow(ID, start))
        assert lines == said(*range(start, 3))
        assert isinstance(end, Ended)

    watching(test)


def test_the_queue_is_asked_once_for_all(watching, queue):
    queue.say(1, *LINES)

    async def test(watches):
        followers = [watches.follow(ID, 0) for _ in range(20)]
        for events in followers:
            assert await take(events, 3) == said(0, 1, 2)
        for events in followers:
            await events.aclose()

    watching(test, poll_seconds=3600)
    assert queue.num_reads == 1


def test_nobody_asks_when_nobody_watches(watching, queue):
    queue.say(1, LINES[0])

    async def test(watches):
        events = watches.follow(ID, 0)
        await take(events, 1)
        await events.aclose()
        # Until the time of this test is over, if need be.
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)

    watching(test)


def test_when_nothing_is_said_that_is_told(watching):
    async def test(watches):
        assert await take(watches.follow(ID, 0), 3) == [Quiet()] * 3

    watching(test, keep_alive_seconds=0)


def test_a_queue_that_is_down_is_waited_for(watching, queue):
    queue.is_down = True

    async def test(watches):
        events = watches.follow(ID, 0)
        assert await take(events, 1) == [Quiet()]
        queue.say(1, *LINES)
        queue.is_down = False
        found = []
        while len(found) < len(LINES):
            found += [event for event in await take(events, 1) if isinstance(event, Said)]
        assert found == said(0, 1, 2)
        await events.aclose()

    watching(test, keep_alive_seconds=0)


def test_streams_end_when_the_service_is_about_to_stop(watching, queue):
    queue.say(1, LINES[0])
    draining = []

    async def test(watches):
        events = watches.follow(ID, 0)
        assert await take(events, 1) == said(0)
        draining.append(True)
        # Without an end: the client goes on elsewhere.
        assert await take_all(events) == []
        with pytest.raises(Unavailable, match="about to stop"):
            watches.check_room()

    watching(test, is_draining=lambda: bool(draining))


def test_a_job_that_is_gone_has_no_end(watching, queue):
    queue.say(1, LINES[0])

    async def test(watches):
        events = watches.follow(ID, 0)
        assert await take(events, 1) == said(0)
        del queue.jobs[ID]
        assert await take_all(events) == []

    watching(test)


def test_a_bug_ends_the_streams(watching, queue, caplog):
    queue.read_log = lambda *_: 1 / 0

    async def test(watches):
        assert await take_all(watches.follow(ID, 0)) == []

    watching(test)
    assert "cannot be watched" in caplog.text


def test_watchers_are_counted(watching, queue):
    queue.say(1, LINES[0])

    async def test(watches):
        watches.check_room()
        followers = [watches.follow(ID, 0) for _ in range(2)]
        for events in followers:
            await take(events, 1)
        with pytest.raises(Overloaded, match="2 clients are watching"):
            watches.check_room()
        await followers[0].aclose()
        watches.check_room()
        await followers[1].aclose()

    watching(test, max_watchers=2)
