"""Turns: so many at once, so many waiting, and no more."""

import asyncio
import threading

import pytest

from attnserve.service.body import in_turn
from attnserve.service.problems import Overloaded
from attnserve.service.turns import Turns
from tests.service.test_body import make_request


def test_one_works_one_waits_and_the_next_is_refused():
    may_end = threading.Event()

    async def conversation():
        turns = Turns(1, max_waiting=1, work="encoding")
        first = asyncio.create_task(in_turn(make_request(), turns, may_end.wait))
        await until(turns.locked)
        second = asyncio.create_task(in_turn(make_request(), turns, lambda: threading.current_thread().name))
        await until(lambda: turns.num_waiting == 1)
        with pytest.raises(Overloaded) as caught:
            await in_turn(make_request(), turns, lambda: 3)
        assert str(caught.value.detail) == "1 answers wait for encoding, and at most 1 may"
        assert caught.value.reason == "encoding"
        may_end.set()
        assert await first
        # In a thread of its own.
        assert (await second).startswith("encoding")
        # Who was refused has taken nothing and left nothing.
        assert not turns.locked()
        assert turns.num_waiting == 0
        assert await in_turn(make_request(), turns, lambda: 4) == 4
        turns.close()

    asyncio.run(asyncio.wait_for(conversation(), 30))


def test_who_stops_waiting_makes_room():
    may_end = threading.Event()

    async def conversation():
        turns = Turns(1, max_waiting=1, work="encoding")
        first = asyncio.create_task(in_turn(make_request(), turns, may_end.wait))
        await until(turns.locked)
        second = asyncio.create_task(in_turn(make_request(), turns, lambda: None))
        await until(lambda: turns.num_waiting == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await until(lambda: turns.num_waiting == 0)
        third = asyncio.create_task(in_turn(make_request(), turns, lambda: 3))
        may_end.set()
        assert await third == 3
        await first
        turns.close()

    asyncio.run(asyncio.wait_for(conversation(), 30))


async def until(condition):
    while not condition():
        await asyncio.sleep(0)
