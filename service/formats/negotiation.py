"""Negotiation: the format and the compression of an answer, by what its client accepts (RFC 9110)."""

import re
from collections.abc import Sequence

from attnserve.service.problems import NotAcceptable

JSON, SAFETENSORS, NPZ = "application/json", "application/x-safetensors", "application/x-npz"
PNG, BINARY, EVENTS = "image/png", "application/octet-stream", "text/event-stream"
TENSORS = (SAFETENSORS, NPZ, BINARY)
"""Formats that hold arrays and, beside them, the JSON part of an answer."""
FORMATS = (JSON, *TENSORS, PNG)
IDENTITY = "identity"
ENCODINGS = ("zstd", "gzip")
"""By how little they cost for what they save."""


def choose_format(accept: str | None, formats: Sequence[str] = FORMATS) -> str:
    """The media type to answer with: the highest q-value wins, then the client's order, then ours.

    Args:
        accept: the `Accept` header. Of several entries that fit a format, the most specific one speaks for it.
        formats: what this answer can be written as.

    Raises:
        NotAcceptable: none of them is wanted.
    """
    if not accept or accept == "*/*":
        return formats[0]
    entries = [_parse_entry(entry) for entry in accept.split(",")]
    best, best_rank = None, (0.0, 0)
    for media_type in formats:
        for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
            ranks = [(quality, -place) for place, (name, quality) in enumerate(entries) if name == media_range]
            if ranks:
                if max(ranks)[0] > 0 and (best is None or max(ranks) > best_rank):
                    best, best_rank = media_type, max(ranks)
                break
    if best is None:
        raise NotAcceptable.about("Accept", f"expected one of {', '.join(formats)}, got {accept[:100]!r}")
    return best


def choose_encoding(accept: str | None) -> str:
    """The content coding to answer with, or `IDENTITY`: the highest q-value wins, then ours before none.

    Args:
        accept: the `Accept-Encoding` header. Without one an answer goes as it is.

    Raises:
        NotAcceptable: neither of ours is wanted, nor none.
    """
    if not accept:
        return IDENTITY
    qualities: dict[str, float] = {}
    for entry in accept.split(","):
        name, quality = _parse_entry(entry)
        qualities[name.removeprefix("x-")] = max(quality, qualities.get(name, 0.0))
    anything = qualities.get("*", 0.0)
    # What is not named is refused by `*;q=0` only.
    unnamed = anything if "*" in qualities else 1.0
    ranks = [(qualities.get(name, anything), -place, name) for place, name in enumerate(ENCODINGS)]
    # Between an encoding and none, a client that names only the encoding prefers it.
    plain = qualities.get(IDENTITY, min(unnamed, 0.001))
    quality, _, name = max(ranks)
    if quality > 0 and quality >= plain:
        return name
    if plain > 0:
        return IDENTITY
    expected = ", ".join((*ENCODINGS, IDENTITY))
    raise NotAcceptable.about("Accept-Encoding", f"expected one of {expected}, got {accept[:100]!r}")


def _parse_entry(entry: str) -> tuple[str, float]:
    """Name and q-value of one entry of a header; one that cannot be read has a q-value of 0."""
    name, *parameters = (part.strip().lower() for part in entry.split(";"))
    text = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    # RFC 9110: at most three digits. `float` would also take "nan", "inf" and "1_0".
    return name, float(text) if re.fullmatch(r"[01](\.\d{0,3})?", text) else 0.0
