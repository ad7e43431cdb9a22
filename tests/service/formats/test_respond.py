"""Responses: compressed where that pays, and said so."""

import gzip

import pytest

from attnserve.service.formats.negotiation import IDENTITY, JSON, PNG
from attnserve.service.formats.respond import MIN_COMPRESSED_BYTES, respond
from attnserve.service.formats.tensors import Written

LARGE = Written(parts=[b"a" * MIN_COMPRESSED_BYTES], headers={"X-Length": "3"})


def test_a_large_body_is_compressed():
    response = respond(LARGE, JSON, "gzip", {"ETag": '"1"'}, status=201)
    assert gzip.decompress(response.body) == LARGE.parts[0]
    assert response.status_code == 201
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Content-Length"] == str(len(response.body))
    assert response.headers["Content-Type"] == JSON
    assert (response.headers["ETag"], response.headers["X-Length"]) == ('"1"', "3")


@pytest.mark.parametrize(
    ("written", "media_type", "encoding"),
    [
        (LARGE, JSON, IDENTITY),
        (Written(parts=[b"a" * (MIN_COMPRESSED_BYTES - 1)]), JSON, "zstd"),
        (LARGE, PNG, "zstd"),
    ],
)
def test_others_go_as_they_are(written, media_type, encoding):
    response = respond(written, media_type, encoding)
    assert response.body == b"".join(written.parts)
    assert "Content-Encoding" not in response.headers
    # A cache must know all the same that another client would have got another body.
    assert response.headers["Vary"] == "Accept, Accept-Encoding"
