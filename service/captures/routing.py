"""What the routes of captures share: how they find a capture and its parts, and answer what a client lacks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

from fastapi import Request, Response

from attnserve.service.body import in_turn
from attnserve.service.captures.cache import judge
from attnserve.service.captures.capture import Capture
from attnserve.service.captures.parameters import parse_index
from attnserve.service.captures.store import CaptureStore
from attnserve.service.captures.view import Size, View, write_view
from attnserve.service.deadline import within_deadline
from attnserve.service.formats.negotiation import BINARY, JSON, NPZ, PNG, SAFETENSORS, choose_encoding, choose_format
from attnserve.service.idle import Idle
from attnserve.service.routing import get_stages
from attnserve.service.selection import parse_choice
from attnserve.service.settings import Settings

FORMAT = "format"
NAMES = {"json": JSON, "safetensors": SAFETENSORS, "npz": NPZ, "binary": BINARY, "png": PNG}
"""Formats by the word for them in a URL: links, and images in pages, have no `Accept` of their own."""

# Weights that are computed and written in some 0.2 ms. To wake a thread for them takes more than twice that.
LIGHT_VALUES = 16 * 1024

Done = TypeVar("Done")
Write = Callable[[str, dict[str, str]], Awaitable[Response]]
"""Makes a response of a content coding with some headers."""


def get_store(request: Request) -> CaptureStore:
    """The captures of this app."""
    store: CaptureStore = request.app.state.captures
    return store


def owner_of(request: Request) -> bytes | None:
    """Digest of the key that a request came with; None where the service has no keys."""
    key = request.scope.get("key")
    return None if key is None else key.digest


def find_capture(request: Request, text: str) -> Capture:
    """The capture that a path names, if it is the asker's.

    Raises:
        Gone: it was one.
        NotFound: it is none, or somebody else's.
    """
    return get_store(request).find(text, owner_of(request))


def find_head(capture: Capture, layer: str, head: str) -> tuple[int, int]:
    """Layer and head that a path names.

    Raises:
        Invalid: there is no such one, or the layer was not captured.
    """
    manifest = capture.reader.manifest
    index = parse_index(layer, "layer", len(manifest.layers), "layers")
    capture.check_layers([index], "layer")
    return index, parse_index(head, "head", manifest.num_heads, "heads")


def choose_type(request: Request, fields: dict[str, Any], formats: Sequence[str]) -> str:
    """The media type to answer with, by the parameter `format` or else by `Accept`.

    Raises:
        Invalid: no such format.
        NotAcceptable: none of them is wanted.
    """
    if FORMAT not in fields:
        return choose_format(", ".join(request.headers.getlist("accept")), formats)
    words = [word for word, media_type in NAMES.items() if media_type in formats]
    return NAMES[parse_choice(fields, FORMAT, words, "")]


async def answer(request: Request, capture: Capture, media_type: str, write: Write) -> Response:
    """What `write` makes, unless the client has it already."""
    settings: Settings = request.app.state.settings
    async with within_deadline(request, settings.timeout_ms):
        encoding = choose_encoding(request.headers.get("accept-encoding"))
        freshness = judge(request, capture, media_type, encoding, get_store(request).seconds_left(capture))
        if freshness.is_known:
            return freshness.answer_known()
        idle: Idle = request.app.state.idle
        with idle.busy():
            return await write(encoding, freshness.headers)


async def answer_view(
    request: Request,
    capture: Capture,
    view: Callable[[], View],
    size: Size,
    *,
    pieces: Sequence[Callable[[], object]] = (),
    is_light: bool = False,
) -> Response:
    """A view, computed and written off the event loop, unless that costs more than the work.

    Args:
        request: for it.
        capture: that it is of.
        view: computes it.
        size: of it, and how it is written.
        pieces: of work to be done before, one after the other, so that others have their turns in between.
        is_light: whether it is `LIGHT_VALUES` of weights or less, and nothing must be computed before them.

    Raises:
        TooLarge: it would be; before any work.
        Overloaded: too much of such work is waiting.
    """
    state = request.app.state
    size.check(state.settings.max_response_bytes)
    loop, store = asyncio.get_running_loop(), get_store(request)

    def remember(piece: Callable[[], Done]) -> Done:
        try:
            return piece()
        finally:
            # From the thread: whoever waits may have given up, but what it remembers takes memory all the same.
            if not loop.is_closed():
                loop.call_soon_threadsafe(store.settle, capture)

    async def write(encoding: str, headers: dict[str, str]) -> Response:
        def work() -> Response:
            begin = monotonic()
            response = write_view(capture, view(), size.coding, size.media_type, encoding, headers)
            get_stages(request).add("encode", begin)
            return response

        if is_light:
            return work()
        with state.budget.hold(size.held_bytes):
            for piece in pieces:
                await in_turn(request, state.encoding, remember, piece)
            return await in_turn(request, state.encoding, remember, work)

    return await answer(request, capture, size.media_type, write)
