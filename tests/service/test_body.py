"""Reading a body, and noticing that its sender has left."""

import asyncio
import gzip
import random
import threading
import zlib

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from attnserve.service.body import PIECE_BYTES, in_turn, read_body, while_connected
from attnserve.service.problems import BadRequest, Overloaded, TooLarge, UnsupportedMediaType


def make_request(*parts: bytes, headers: dict[str, str] | None = None, leaves: bool = False) -> Request:
    """A request whose body comes in parts; afterwards the client stays, or leaves at once."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if not leaves:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    arriving = iter(messages)

    async def receive():
        message = next(arriving, None)
        if message is None and not leaves:
            await asyncio.Event().wait()
        return message or {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def read(request: Request, limit: int = 10, hold=lambda _: None) -> bytes:
    return asyncio.run(read_body(request, limit, hold))


async def wait_for(request: Request, work):
    return await while_connected(request, asyncio.ensure_future(work))


def test_parts_are_joined_and_counted():
    held = []
    assert read(make_request(b"12345", b"", b"67890"), hold=held.append) == b"1234567890"
    assert sum(held) == 10


@pytest.mark.parametrize("length", ["11", "9" * 5000, "99999999999999999999"])
def test_what_is_declared_too_large_is_not_read(length):
    def hold(_):
        raise AssertionError("read")

    with pytest.raises(TooLarge, match="body: expected at most 10 bytes, got more"):
        read(make_request(b"1", headers={"Content-Length": length}), hold=hold)


@pytest.mark.parametrize("length", [None, "3", "-1", "x", "\xb2", ""])
def test_what_is_too_large_is_read_no_further_whatever_was_declared(length):
    held = []
    headers = {} if length is None else {"Content-Length": length}
    with pytest.raises(TooLarge):
        read(make_request(*[b"1234"] * 100, headers=headers), hold=held.append)
    assert sum(held) == 8


def test_memory_may_run_out_on_the_way():
    def hold(_):
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        read(make_request(b"1"), hold=hold)


def test_leaving_on_the_way():
    with pytest.raises(ClientDisconnect):
        read(make_request(b"1", leaves=True))


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON ; charset=utf-8", "application/ld+json", None])
def test_json_by_any_name(kind):
    assert read(make_request(b"{}", headers={} if kind is None else {"Content-Type": kind})) == b"{}"


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Content-Type": ""}, "Content-Type"),
        ({"Content-Type": "text/json"}, "Content-Type"),
        ({"Content-Type": "x" * 1000}, "Content-Type"),
        ({"Content-Encoding": "gzip"}, "Content-Encoding"),
        ({"Content-Encoding": "identity, br"}, "Content-Encoding"),
    ],
)
def test_anything_else_is_refused_by_name(headers, field):
    with pytest.raises(UnsupportedMediaType) as caught:
        read(make_request(b"{}", headers=headers))
    (fault,) = caught.value.faults
    assert fault.field == field
    assert len(fault.message) < 150


def pack(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body) if encoding == "gzip" else zlib.compress(body)


def read_packed(*parts: bytes, encoding: str, limit: int = 10, hold=lambda _: None) -> bytes:
    request = make_request(*parts, headers={"Content-Encoding": encoding, "Content-Type": "image/png"})
    return asyncio.run(read_body(request, limit, hold, as_json=False))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
@pytest.mark.parametrize("is_noise", [True, False])
def test_packed_bodies(encoding, size, is_noise):
    body = random.Random(0).randbytes(size) if is_noise else bytes(size)
    packed, held = pack(body, encoding), []
    limit = max(size, len(packed))
    assert read_packed(packed, encoding=encoding, limit=limit, hold=held.append) == body
    assert sum(held) == size
    parts = [packed[place : place + 1000] for place in range(0, len(packed), 1000)]
    assert read_packed(*parts, encoding=encoding.upper(), limit=limit) == body
    if size:
        with pytest.raises(TooLarge):
            read_packed(packed, encoding=encoding, limit=size - 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_unpacks_to_too_much_is_unpacked_no_further(encoding):
    held = []
    with pytest.raises(TooLarge, match="body: expected at most 1000000 bytes, got more"):
        read_packed(pack(bytes(100_000_000), encoding), encoding=encoding, limit=1_000_000, hold=held.append)
    assert sum(held) <= 1_000_000


def test_what_unpacks_to_nothing_is_read_no_further():
    # Blocks of no bytes, five bytes each.
    head, nothing = zlib.compress(b"")[:2], b"\x00\x00\x00\xff\xff"
    with pytest.raises(TooLarge):
        read_packed(head, *[nothing * 1000] * 100, encoding="deflate", limit=20_000)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_not_packed_as_declared_is_refused(encoding):
    packed = pack(b"12345", encoding)
    other = pack(b"12345", "deflate" if encoding == "gzip" else "gzip")
    for body in (b"", b"12345", packed[:-1], packed + b"x", packed + packed, other):
        with pytest.raises(BadRequest, match=f"body: expected {encoding}, as Content-Encoding says"):
            read_packed(body, encoding=encoding, limit=1000)


def test_other_packings_are_refused_by_name():
    for encoding in ("br", "gzip, gzip", ""):
        with pytest.raises(UnsupportedMediaType, match="Content-Encoding: expected none, gzip or deflate"):
            read_packed(b"", encoding=encoding)


def test_work_goes_on_while_the_client_stays():
    async def work():
        return 42

    assert asyncio.run(wait_for(make_request(), work())) == 42


def test_errors_of_the_work_are_the_callers():
    async def work():
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        asyncio.run(wait_for(make_request(), work()))


def test_work_of_a_client_who_leaves_is_cancelled():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def ask():
        with pytest.raises(ClientDisconnect):
            await wait_for(make_request(leaves=True), work())
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == ["cancelled"]


def test_turns_are_given_back_and_lost_by_those_who_leave():
    async def ask():
        turns = asyncio.Semaphore(1)
        may_end, done = threading.Event(), []

        def work(number):
            may_end.wait()
            done.append(number)
            return number

        first = asyncio.create_task(in_turn(make_request(), turns, work, 1))
        while not turns.locked():
            await asyncio.sleep(0)
        with pytest.raises(ClientDisconnect):
            await in_turn(make_request(leaves=True), turns, work, 2)
        third = asyncio.create_task(in_turn(make_request(), turns, work, 3))
        may_end.set()
        assert (await first, await third) == (1, 3)
        with pytest.raises(ZeroDivisionError):
            await in_turn(make_request(), turns, lambda: 1 / 0)
        assert not turns.locked()
        assert done == [1, 3]

    asyncio.run(ask())


def test_a_turn_that_comes_in_the_moment_it_is_given_up_is_not_lost():
    """Whoever waited is cancelled by a deadline, or left, in the very turn of the loop in which the turn came."""

    async def ask():
        turns = asyncio.Semaphore(1)
        for steps in range(8):
            await turns.acquire()
            waiting = asyncio.create_task(in_turn(make_request(), turns, lambda: None))
            for _ in range(8):
                await asyncio.sleep(0)
            turns.release()
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await asyncio.wait_for(turns.acquire(), 10)
            turns.release()

    asyncio.run(ask())
