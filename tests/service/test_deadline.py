"""Deadlines: whichever is shortest counts, what is late is dropped, and turns last as long as their work."""

import asyncio
import threading

import pytest
from fastapi import Request

from attnserve.service.body import in_turn
from attnserve.service.deadline import HEADER, MAX_TIMEOUT_MS, Deadline, parse_timeout, within_deadline
from attnserve.service.problems import DeadlineExceeded, Invalid


def make_request(timeout: str | None = None) -> Request:
    headers = [] if timeout is None else [(HEADER.lower().encode(), timeout.encode("latin-1"))]

    async def receive():
        await asyncio.Event().wait()

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def wait(*, header=None, default_ms=0.0, field_ms=None):
    """Wait for ever, within the deadline; returns what it was."""
    seen: list[Deadline] = []

    async def ask():
        async with within_deadline(make_request(header), default_ms) as deadline:
            seen.append(deadline)
            deadline.shorten(field_ms)
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded) as caught:
        asyncio.run(ask())
    assert caught.value.status == 504
    assert caught.value.detail == f"not answered within {seen[0].milliseconds:g} ms"
    return seen[0].milliseconds


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"default_ms": 3.0}, 3),
        ({"header": "2"}, 2),
        ({"header": "0.5"}, 0.5),
        ({"field_ms": 1.5}, 1.5),
        ({"header": "2", "default_ms": 100_000.0}, 2),
        ({"header": "100000", "default_ms": 2.0}, 2),
        ({"header": "100000", "field_ms": 2.0}, 2),
        ({"header": "2", "field_ms": 100_000.0}, 2),
        ({"default_ms": 2.0, "header": "1", "field_ms": 0.001}, 0.001),
    ],
)
def test_the_shortest_counts(given, expected):
    assert wait(**given) == expected


def test_without_one_there_is_no_limit():
    async def ask():
        async with within_deadline(make_request(), 0.0) as deadline:
            deadline.shorten(None)
            return deadline.at

    assert asyncio.run(ask()) is None


def test_what_is_in_time_is_answered():
    async def ask():
        async with within_deadline(make_request("100000"), 0.0) as deadline:
            await asyncio.sleep(0)
            return deadline.at - deadline.start

    assert asyncio.run(ask()) == pytest.approx(100)


def test_other_timeouts_are_somebody_elses():
    async def ask():
        async with within_deadline(make_request("100000"), 0.0):
            raise TimeoutError("not ours")

    with pytest.raises(TimeoutError, match="not ours"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "text", ["0", "-1", "nan", "inf", "", "soon", "1_0", "\xb2", "1 2", str(MAX_TIMEOUT_MS + 1), "9" * 5000, "1e400"]
)
def test_a_header_that_is_no_timeout_is_named(text):
    async def ask():
        async with within_deadline(make_request(text), 0.0):
            raise AssertionError("asked")

    with pytest.raises(Invalid) as caught:
        asyncio.run(ask())
    (fault,) = caught.value.faults
    assert fault.field == HEADER
    assert len(fault.message) < 150


@pytest.mark.parametrize("value", [0, -1, True, False, "1", None, [], {}, MAX_TIMEOUT_MS + 1, 2**64 - 1])
def test_a_field_that_is_no_timeout_is_named(value):
    with pytest.raises(Invalid, match=f"x: expected a number > 0 and at most {MAX_TIMEOUT_MS}, got "):
        parse_timeout(value, "x")


def test_units():
    assert parse_timeout(2500, "x", unit_ms=1e-3) == 2.5
    assert parse_timeout(MAX_TIMEOUT_MS * 1000, "x", unit_ms=1e-3) == MAX_TIMEOUT_MS
    with pytest.raises(Invalid, match="at most 86400000000, got"):
        parse_timeout(MAX_TIMEOUT_MS * 1000 + 1, "x", unit_ms=1e-3)


def test_a_turn_is_given_back_when_its_work_ends_and_not_when_its_deadline_does():
    async def ask():
        turns, may_end = asyncio.Semaphore(1), threading.Event()
        with pytest.raises(DeadlineExceeded):
            async with within_deadline(make_request("1"), 0.0):
                await in_turn(make_request(), turns, may_end.wait)
        assert turns.locked()
        # Those behind it are late too, and lose their places.
        with pytest.raises(DeadlineExceeded):
            async with within_deadline(make_request("1"), 0.0):
                await in_turn(make_request(), turns, may_end.wait)
        assert turns.locked()
        may_end.set()
        assert await in_turn(make_request(), turns, lambda: 42) == 42
        assert not turns.locked()

    asyncio.run(ask())


def test_errors_of_work_nobody_waits_for_are_nobodys():
    problems = []

    async def ask():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        turns, may_end = asyncio.Semaphore(1), threading.Event()

        def work():
            may_end.wait()
            raise ZeroDivisionError

        with pytest.raises(DeadlineExceeded):
            async with within_deadline(make_request("1"), 0.0):
                await in_turn(make_request(), turns, work)
        may_end.set()
        async with turns:
            pass

    asyncio.run(ask())
    assert not problems
