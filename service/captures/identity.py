"""Ids of captures: a name, and a tag that says when the capture ends and that a service of ours made it.

A replica that never saw a capture, or has forgotten it, can so tell one that is lost from one that never was. The tag
is no secret and protects nothing: a capture belongs to the key that made it.
"""

import base64
import binascii
import functools
import hashlib
import re
import secrets
import struct
from dataclasses import dataclass

from attnserve.service.problems import Invalid

HEADER = "Capture-Id"
"""In which a gateway gives a new capture its name, so that it finds the way to it by the name alone."""
# Nobody guesses 16 characters of a gateway's random ids. No dot: the tag begins behind it.
NAME = re.compile(r"[A-Za-z0-9_-]{16,64}")
DIGEST_BYTES = 6


@dataclass(frozen=True, kw_only=True)
class CaptureId:
    """An id, taken apart."""

    name: str
    expires: int
    """Seconds since 1970."""

    @functools.cached_property
    def text(self) -> str:
        """As it stands in paths."""
        end = struct.pack(">I", self.expires)
        return f"{self.name}.{_to_text(end + _digest(self.name, end))}"

    def __str__(self) -> str:
        return self.text


def check_name(given: str | None) -> str | None:
    """The name that a gateway gave, if it did.

    Raises:
        Invalid: it is no name.
    """
    if given is not None and not NAME.fullmatch(given):
        expected = "16 to 64 letters, digits, '-' or '_'"
        raise Invalid.about(HEADER, f"expected {expected}, got {given[:24]!r}")
    return given


def make_name() -> str:
    """A name that nobody guesses."""
    return secrets.token_hex(16)


def read_id(text: str) -> CaptureId | None:
    """The id that `text` is; None if no service of ours made it."""
    name, dot, tag = text.partition(".")
    if not dot or not NAME.fullmatch(name):
        return None
    try:
        raw = base64.b32decode(tag.upper())
    except (binascii.Error, ValueError):
        return None
    end, digest = raw[:4], raw[4:]
    # There is more than one way to write a tag, but an id is a key in a table.
    if digest != _digest(name, end) or tag != _to_text(raw):
        return None
    return CaptureId(name=name, expires=struct.unpack(">I", end)[0])


def _digest(name: str, end: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + end, digest_size=DIGEST_BYTES, person=b"attnserve").digest()


def _to_text(raw: bytes) -> str:
    """Sixteen letters and digits; ten bytes need no padding."""
    return base64.b32encode(raw).decode().lower()
