"""What is done for nobody: when it may begin, and that it is told at once when somebody comes."""

import asyncio

from attnserve.service.idle import Idle


def test_it_begins_when_the_last_one_has_been_answered() -> None:
    async def wait() -> list[str]:
        idle, seen = Idle(), []

        async def work() -> None:
            await idle.wait()
            seen.append("begun")

        with idle.busy():
            with idle.busy():
                working = asyncio.create_task(work())
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append("answered")
        await working
        return seen

    assert asyncio.run(wait()) == ["answered", "begun"]


def test_who_comes_before_its_turn_goes_first() -> None:
    async def wait() -> list[str]:
        idle, seen = Idle(), []

        async def work() -> None:
            await idle.wait()
            seen.append("begun")

        with idle.busy():
            working = asyncio.create_task(work())
            await asyncio.sleep(0)
        # It is awake by now, but has not had its turn.
        with idle.busy():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append("answered")
        await working
        return seen

    assert asyncio.run(wait()) == ["answered", "begun"]


def test_what_is_under_way_is_interrupted_by_each_who_comes_and_only_then() -> None:
    idle, calls = Idle(), []
    with idle.until_busy(lambda: calls.append("interrupt")):
        assert calls == []
        with idle.busy():
            assert calls == ["interrupt"]
    with idle.busy():
        assert calls == ["interrupt"]


def test_a_request_that_fails_is_over() -> None:
    async def wait() -> None:
        idle = Idle()
        try:
            with idle.busy():
                raise ValueError
        except ValueError:
            await idle.wait()

    asyncio.run(wait())
