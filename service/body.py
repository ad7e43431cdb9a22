"""The body of a request, read from the network within its limits, and the client that sent it."""

import asyncio
import functools
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from attnserve.service.formats.negotiation import JSON
from attnserve.service.problems import BadRequest, TooLarge, UnsupportedMediaType
from attnserve.service.turns import Turns

Result = TypeVar("Result")

# Windows of zlib: what HTTP calls deflate is zlib's own format.
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# A packed body is unpacked this much at a time, and others are served in between: a byte of it may become a thousand.
PIECE_BYTES = 256 * 1024
IS_READING = "is_reading"
"""In the scope of a request whose body is wanted."""
# For so long nobody looks whether a client is still there.
PATIENCE_SECONDS = 0.02


async def read_body(
    request: Request, limit_bytes: int, hold: Callable[[int], object], *, as_json: bool = True
) -> bytes:
    """The body, refused as soon as it passes the limit.

    Args:
        request: its body has not been read.
        limit_bytes: of the body, compressed and not.
        hold: told of the bytes of each part as it comes; may raise.
        as_json: refuse other types than JSON, and compression; else any type is taken, and gzip and deflate.

    Raises:
        UnsupportedMediaType: a Content-Type or Content-Encoding that is not taken is declared.
        BadRequest: not compressed as declared.
        TooLarge: longer than `limit_bytes`.
        ClientDisconnect: the client left before the end.
    """
    media_type = request.headers.get("content-type", JSON).split(";")[0].strip().lower()
    if as_json and media_type != JSON and not media_type.endswith("+json"):
        hint = " (curl: use --json instead of -d)" if media_type == "application/x-www-form-urlencoded" else ""
        raise UnsupportedMediaType.about("Content-Type", f"expected {JSON}, got {media_type[:64]!r}{hint}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity" and (as_json or encoding not in WINDOWS):
        expected = "none" if as_json else f"none, {' or '.join(WINDOWS)}"
        raise UnsupportedMediaType.about("Content-Encoding", f"expected {expected}, got {encoding[:64]!r}")
    if (read_length(request) or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    request.scope[IS_READING] = True
    parts: AsyncIterator[bytes] = request.stream()
    if encoding != "identity":
        parts = _unpack(_limit(parts, limit_bytes), encoding)
    chunks, size = [], 0
    async for chunk in parts:
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        hold(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


def read_length(request: Request) -> int | None:
    """The length that the head of a request declares, if it does."""
    declared = request.headers.get("content-length", "")
    # A server checks that it is a number; that of one beyond 18 digits no longer matters.
    return int(declared[:18]) if declared.isdecimal() else None


async def while_connected(request: Request, working: "asyncio.Future[Result]") -> Result:
    """The result of `working`, which is cancelled when the client leaves: what it queued is dropped, not computed.

    To be called when the body has been read.

    Raises:
        ClientDisconnect: the client left.
    """
    leaving: asyncio.Future[None] | None = None

    def watch() -> None:
        nonlocal leaving
        leaving = asyncio.ensure_future(_disconnect(request))
        leaving.add_done_callback(lambda _: working.cancel())

    # Most are done by then, and a task that watches the client costs as much as a small model.
    patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, watch)
    try:
        return await working
    except asyncio.CancelledError:
        # Not at a deadline, which cancels whoever waits here.
        if leaving is not None and leaving.done():
            raise ClientDisconnect from None
        raise
    finally:
        patience.cancel()
        working.cancel()
        if leaving is not None:
            leaving.cancel()


async def in_turn(request: Request, turns: asyncio.Semaphore, work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of `work`, done in a thread when it is this request's turn; a client who leaves loses theirs.

    Raises:
        ClientDisconnect: the client left while waiting.
        Overloaded: too many wait already.
    """
    turn = asyncio.ensure_future(turns.acquire())
    try:
        await while_connected(request, turn)
    except BaseException:
        # It may have come in the very moment it was given up.
        turn.add_done_callback(lambda done: None if done.cancelled() or done.exception() else turns.release())
        raise
    threads = turns.threads if isinstance(turns, Turns) else None
    working = asyncio.get_running_loop().run_in_executor(threads, functools.partial(work, *arguments))

    def pass_on(done: "asyncio.Future[Result]") -> None:
        turns.release()
        if not done.cancelled():
            # Looked at, or asyncio complains when nobody waits any more.
            done.exception()

    working.add_done_callback(pass_on)
    # A thread cannot be stopped: whoever waits may give up at a deadline, but the turn ends with the work.
    return await asyncio.shield(working)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge.about("body", f"expected at most {limit_bytes} bytes, got more")


async def _limit(parts: AsyncIterator[bytes], limit_bytes: int) -> AsyncIterator[bytes]:
    size = 0
    async for part in parts:
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        yield part


async def _unpack(parts: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    broken = BadRequest.about("body", f"expected {encoding}, as Content-Encoding says, got something else")
    decoder = zlib.decompressobj(WINDOWS[encoding])
    async for part in parts:
        # More may be ready than was asked for, even of a part that is all read.
        is_full = bool(part)
        while is_full:
            try:
                piece = decoder.decompress(part, PIECE_BYTES)
            except zlib.error:
                raise broken from None
            if decoder.unused_data:
                raise broken
            part, is_full = decoder.unconsumed_tail, len(piece) == PIECE_BYTES
            yield piece
            await asyncio.sleep(0)
    if not decoder.eof:
        raise broken


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
