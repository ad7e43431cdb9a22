"""The queue is asked in threads, for so long and no longer, and what it lacks is said."""

import asyncio
import sys
import threading

import pytest

from attnserve.service.exports.client import NUM_THREADS, Client, open_database
from attnserve.service.exports.job import QueueDown
from attnserve.service.problems import NotInstalled, Unavailable


def ask(client, work):
    async def run():
        try:
            return await client.ask(work)
        finally:
            await client.close()

    return asyncio.run(run())


def test_it_asks_in_another_thread(queue):
    thread = ask(Client(lambda: queue), lambda found: (found, threading.current_thread()))
    assert thread[0] is queue
    assert thread[1] is not threading.current_thread()


def test_the_queue_is_opened_once_and_closed(queue):
    num_opened = 0

    def open_queue():
        nonlocal num_opened
        num_opened += 1
        return queue

    async def run():
        client = Client(open_queue)
        assert num_opened == 0
        await asyncio.gather(*(client.ask(lambda found: found.find("x")) for _ in range(2 * NUM_THREADS)))
        await client.close()

    asyncio.run(run())
    assert num_opened == 1
    assert queue.is_closed


def test_a_queue_that_nobody_asked_is_never_opened():
    def open_queue():
        raise AssertionError

    asyncio.run(Client(open_queue).close())


def test_a_queue_that_cannot_be_opened_is_tried_again(queue):
    states = iter([True, False])

    def open_queue():
        if next(states):
            raise QueueDown("nobody has prepared the database of export jobs yet")
        return queue

    async def run():
        client = Client(open_queue)
        with pytest.raises(Unavailable, match="nobody has prepared"):
            await client.ask(lambda found: found)
        assert await client.ask(lambda found: found) is queue
        await client.close()

    asyncio.run(run())


def test_a_queue_that_is_down_is_503(queue):
    queue.is_down = True
    with pytest.raises(Unavailable, match=r"the database of export jobs does not answer"):
        ask(Client(lambda: queue), lambda found: found.find("x"))


def test_a_slow_queue_is_503(queue):
    release = threading.Event()

    async def run():
        client = Client(lambda: queue, patience_seconds=0)
        try:
            with pytest.raises(Unavailable, match="has not answered within 0 s"):
                await client.ask(lambda _: release.wait())
        finally:
            release.set()
            await client.close()

    asyncio.run(run())


def test_what_no_thread_has_begun_with_is_not_done_for_those_who_left(queue):
    begun, release, done = threading.Semaphore(0), threading.Event(), []

    def work(_):
        begun.release()
        release.wait()

    async def run():
        client = Client(lambda: queue)
        busy = [asyncio.create_task(client.ask(work)) for _ in range(NUM_THREADS)]
        for _ in busy:
            await asyncio.to_thread(begun.acquire)
        waiting = asyncio.create_task(client.ask(lambda _: done.append("waiting")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        release.set()
        await asyncio.gather(*busy)
        await client.ask(lambda _: done.append("next"))
        await client.close()

    asyncio.run(run())
    assert done == ["next"]


def test_other_errors_are_bugs(queue):
    with pytest.raises(ZeroDivisionError):
        ask(Client(lambda: queue), lambda _: 1 / 0)


def test_without_the_extra_it_says_which(monkeypatch):
    monkeypatch.delitem(sys.modules, "attnserve.service.exports.queue", raising=False)
    monkeypatch.setitem(sys.modules, "dbos", None)
    with pytest.raises(NotInstalled, match=r"exports need dbos, .*: pip install 'attnserve\[jobs\]'"):
        open_database("sqlite:///x.sqlite")
