"""The head of a safetensors file, looked at before anything opens it: what is wrong is said in words of its own."""

import json
from pathlib import Path
from typing import Any

from attnserve.checkpoint_files import CONVERT_PICKLE

LENGTH_BYTES = 8
# Of some hundred thousand tensors. The library that opens the file would read a hundred MB.
MAX_HEADER_BYTES = 16 * 1024 * 1024
# What torch.save writes: an archive, or a pickle of protocol 2 to 5.
ARCHIVE = b"PK\x03\x04"
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class WeightsError(ValueError):
    """A file is no whole safetensors file; the message says why, not which."""


def check_head(path: Path) -> None:
    """Look at how long a file says it is. Of types, shapes and places of its tensors the library is the judge.

    Raises:
        WeightsError: it is a pickle, truncated or longer than its tensors, or its header is too long or not JSON.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            raise WeightsError(f"expected at least {LENGTH_BYTES} bytes, got {len(head)}")
        length = int.from_bytes(head, "little")
        if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            # Only now: the length of a header may look like the beginning of a pickle.
            if head.startswith((ARCHIVE, *PICKLES)):
                raise WeightsError(f"a pickle, {CONVERT_PICKLE}")
            if length > MAX_HEADER_BYTES:
                raise WeightsError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}")
            raise WeightsError(f"truncated: expected a header of {length} bytes, got {size - LENGTH_BYTES}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise WeightsError("expected a header in JSON, got something else") from None
    if not isinstance(header, dict):
        raise WeightsError(f"expected a header that is a JSON object, got {type(header).__name__}")
    ends = [end for end in map(_find_end, header.values()) if end is not None]
    expected, got = max(ends, default=0), size - LENGTH_BYTES - length
    if got < expected:
        raise WeightsError(f"truncated: expected {expected} bytes of tensors, got {got}")
    if got > expected:
        raise WeightsError(f"expected {expected} bytes of tensors, got {got - expected} more after the last one")


def _find_end(tensor: Any) -> int | None:
    """Where a tensor ends in the data; None if its entry is none."""
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    end = offsets[1] if isinstance(offsets, list) and len(offsets) == 2 else None
    return end if isinstance(end, int) else None
