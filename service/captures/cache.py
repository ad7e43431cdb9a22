"""Caching: captures never change, so a client may keep what it was sent until they end."""

import hashlib
from dataclasses import dataclass

from fastapi import Request, Response

from attnserve.service.captures.capture import Capture
from attnserve.service.formats.respond import VARY
from attnserve.service.routing import has_already


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How long an answer about a capture may be kept, and by what it is known."""

    headers: dict[str, str]
    is_known: bool
    """Whether the client has it already."""

    def answer_known(self) -> Response:
        """What a client is told that has it."""
        return Response(status_code=304, headers={**self.headers, **VARY})


def describe_capture(capture: Capture, seconds_left: int) -> dict[str, str]:
    """Headers of every answer about a capture: which, for how long, and what the way it is kept has cost.

    `Attention-Capture` is a string and its parameter, as structured fields have them (RFC 9651).
    """
    error = capture.row_error
    lost = {} if error is None else {"Attention-Store-Row-Error": f"{error.value:.3g}"}
    return {"Attention-Capture": f'"{capture.id}";expires={seconds_left}', **lost}


def judge(request: Request, capture: Capture, media_type: str, encoding: str, seconds_left: int) -> Freshness:
    """What to say of an answer before it is made.

    Args:
        request: for a part of `capture`.
        capture: that it is of.
        media_type: of the answer.
        encoding: of the answer.
        seconds_left: until the capture ends.
    """
    # Weak: what is computed again may differ in its last bit, as sums do that are added in another order.
    parts = (str(capture.id), request.url.path, request.url.query, media_type, encoding)
    tag = f'W/"{hashlib.blake2b(chr(0).join(parts).encode(), digest_size=12).hexdigest()}"'
    headers = {
        "ETag": tag,
        "Cache-Control": f"private, max-age={seconds_left}, immutable",
        **describe_capture(capture, seconds_left),
    }
    return Freshness(headers=headers, is_known=has_already(request, tag))
