"""Headers of an upload: the digest of what comes, and what must be there before it comes."""

import base64
import binascii
import re

from starlette.datastructures import Headers

from attnserve.service.problems import BadRequest, PreconditionFailed, UnsupportedMediaType

CONTENT_DIGEST, CONTENT_ENCODING, CONTENT_RANGE = "Content-Digest", "Content-Encoding", "Content-Range"
CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH = "Content-Type", "If-Match", "If-None-Match"

# RFC 9651: a dictionary whose values are byte sequences. Neither names nor base64 have commas in them.
NAME = r"[a-z*][a-z0-9_.*-]*"
MEMBER = re.compile(rf"({NAME})=:([A-Za-z0-9+/=]*):(?: *; *{NAME}(?:=[^\s,;]*)?)*")
TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
SHA256_BYTES = 32


def check_form(headers: Headers) -> None:
    """See that the body is the file itself, as it is, and all of it.

    Raises:
        UnsupportedMediaType: it is packed, or an envelope with the file in it.
        BadRequest: it is a part of the file.
    """
    encoding = headers.get(CONTENT_ENCODING, "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType.about(CONTENT_ENCODING, f"expected none, got {encoding[:64]!r}")
    media_type = headers.get(CONTENT_TYPE, "").strip().lower()
    if media_type.startswith("multipart/"):
        hint = "(curl: use -T FILE instead of -F)"
        raise UnsupportedMediaType.about(CONTENT_TYPE, f"expected the file itself, got {media_type[:64]!r} {hint}")
    if CONTENT_RANGE in headers:
        raise BadRequest.about(CONTENT_RANGE, "expected a file as a whole, got a part")


def read_digest(headers: Headers) -> str | None:
    """sha256 that `Content-Digest` (RFC 9530) promises, in hexadecimal; None if it does not, whatever else it does.

    Raises:
        BadRequest: it is malformed.
    """
    value = _join(headers, CONTENT_DIGEST).strip()
    if not value:
        return None
    members = [MEMBER.fullmatch(member.strip(" \t")) for member in value.split(",")]
    digests = {member[1]: member[2] for member in members if member is not None}
    malformed = BadRequest.about(CONTENT_DIGEST, f"expected sha-256=:BASE64:, got {value[:100]!r}")
    if None in members:
        raise malformed
    if "sha-256" not in digests:
        return None
    text = digests["sha-256"].rstrip("=")
    try:
        digest = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise malformed from None
    if len(digest) != SHA256_BYTES:
        raise BadRequest.about(CONTENT_DIGEST, f"sha-256: expected {SHA256_BYTES} bytes, got {len(digest)}")
    return digest.hex()


def check_conditions(headers: Headers, sha256: str | None) -> None:
    """See that what is there is what `If-Match` and `If-None-Match` (RFC 9110) say.

    Args:
        headers: of the request.
        sha256: of the file that is there; None if there is none.

    Raises:
        PreconditionFailed: it is not.
        BadRequest: a header is malformed.
    """
    there = "no such file" if sha256 is None else tag_of(sha256)
    if IF_MATCH in headers and not _names(headers, IF_MATCH, sha256, is_strong=True):
        value = headers[IF_MATCH][:100]
        raise PreconditionFailed.about(IF_MATCH, f"expected that of what is there, {there}, got {value}")
    if IF_NONE_MATCH in headers and _names(headers, IF_NONE_MATCH, sha256, is_strong=False):
        raise PreconditionFailed.about(IF_NONE_MATCH, f"expected another than what is there, {there}")


def tag_of(sha256: str) -> str:
    """The `ETag` of content."""
    return f'"{sha256}"'


def _names(headers: Headers, name: str, sha256: str | None, *, is_strong: bool) -> bool:
    """Whether a list of tags has the one of what is there."""
    value = _join(headers, name).strip()
    if value == "*":
        return sha256 is not None
    tags = [tag.strip(" \t") for tag in value.split(",")]
    if not all(map(TAG.fullmatch, tags)):
        raise BadRequest.about(name, f"expected * or tags in quotes, got {value[:100]!r}")
    return sha256 is not None and tag_of(sha256) in [tag if is_strong else tag.removeprefix("W/") for tag in tags]


def _join(headers: Headers, name: str) -> str:
    return ", ".join(headers.getlist(name))
