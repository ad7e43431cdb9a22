"""The body of a request, read from the network within its limits, and the client that sent it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from attnserve.service.answer import JSON
from attnserve.service.problems import TooLarge, UnsupportedMediaType

Result = TypeVar("Result")


async def read_body(
    request: Request, limit_bytes: int, hold: Callable[[int], object], *, any_media_type: bool = False
) -> bytes:
    """The body, refused as soon as it passes the limit.

    Args:
        request: its body has not been read.
        limit_bytes: of the body.
        hold: told of the bytes of each part as it comes; may raise.
        any_media_type: do not look at the Content-Type.

    Raises:
        UnsupportedMediaType: a Content-Type other than JSON, or a Content-Encoding, is declared.
        TooLarge: longer than `limit_bytes`.
        ClientDisconnect: the client left before the end.
    """
    media_type = request.headers.get("content-type", JSON).split(";")[0].strip().lower()
    if not any_media_type and media_type != JSON and not media_type.endswith("+json"):
        hint = " (curl: use --json instead of -d)" if media_type == "application/x-www-form-urlencoded" else ""
        raise UnsupportedMediaType.about("Content-Type", f"expected {JSON}, got {media_type[:64]!r}{hint}")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType.about("Content-Encoding", f"expected none, got {encoding[:64]!r}")
    declared = request.headers.get("content-length", "")
    # A server checks that it is a number; that of one beyond 18 digits no longer matters.
    size = int(declared[:18]) if declared.isdecimal() else 0
    chunks = []
    if size <= limit_bytes:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit_bytes:
                break
            hold(len(chunk))
            chunks.append(chunk)
    if size > limit_bytes:
        raise TooLarge.about("body", f"expected at most {limit_bytes} bytes, got more")
    return b"".join(chunks)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves: what it queued is dropped, not computed.

    To be called when the body has been read.

    Raises:
        ClientDisconnect: the client left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def in_turn(request: Request, turns: asyncio.Semaphore, work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of `work`, done in a thread when it is this request's turn; a client who leaves loses theirs.

    Raises:
        ClientDisconnect: the client left while waiting.
    """
    await while_connected(request, turns.acquire())
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))

    def pass_on(done: "asyncio.Future[Result]") -> None:
        turns.release()
        if not done.cancelled():
            # Looked at, or asyncio complains when nobody waits any more.
            done.exception()

    working.add_done_callback(pass_on)
    # A thread cannot be stopped: whoever waits may give up at a deadline, but the turn ends with the work.
    return await asyncio.shield(working)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
