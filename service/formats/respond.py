"""Responses of negotiated format and compression."""

from collections.abc import Mapping

from fastapi import Response

from attnserve.service.formats.compression import compress
from attnserve.service.formats.negotiation import IDENTITY, PNG
from attnserve.service.formats.tensors import Written

# Smaller bodies fit a packet or two either way.
MIN_COMPRESSED_BYTES = 1024
VARY = {"Vary": "Accept, Accept-Encoding"}


def respond(
    written: Written,
    media_type: str,
    encoding: str,
    headers: Mapping[str, str] | None = None,
    *,
    status: int = 200,
) -> Response:
    """The response that sends a body, compressed where that pays.

    Args:
        written: the body.
        media_type: of the body.
        encoding: that was negotiated.
        headers: more of them.
        status: of the response.
    """
    # A picture is compressed as it is.
    pays = media_type != PNG and sum(map(len, written.parts)) >= MIN_COMPRESSED_BYTES
    applied = encoding if pays else IDENTITY
    more = {} if applied == IDENTITY else {"Content-Encoding": applied}
    body = compress(written.parts, applied)
    return Response(body, status, {**(headers or {}), **written.headers, **VARY, **more}, media_type)
