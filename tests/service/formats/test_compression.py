"""Compressed bodies are what they were, whoever unpacks them."""

import gzip

import numpy as np
import pytest
import zstandard

from attnserve.service.formats.compression import compress
from attnserve.service.formats.negotiation import ENCODINGS, IDENTITY

UNPACK = {IDENTITY: bytes, "gzip": gzip.decompress, "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body)}


@pytest.mark.parametrize("encoding", [IDENTITY, *ENCODINGS])
@pytest.mark.parametrize(
    "parts",
    [
        [b"{}"],
        [],
        [b"", b"header", np.arange(100_000, dtype=np.uint8).data],
        [bytearray(b"a" * 1000), memoryview(b"b" * 70_000)],
    ],
    ids=["one", "none", "array", "several"],
)
def test_parts_become_one_body(encoding, parts):
    assert UNPACK[encoding](compress(parts, encoding)) == b"".join(parts)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_repeats_becomes_small(encoding):
    assert len(compress([b"0" * 100_000], encoding)) < 1000


def test_clients_know_the_size_in_time():
    body = compress([b"a" * 1000, b"b" * 500], "zstd")
    assert zstandard.get_frame_parameters(body).content_size == 1500
