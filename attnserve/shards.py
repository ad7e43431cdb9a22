"""Weights in several safetensors files, as Hugging Face folders of large models have them, written into one.

A safetensors file is a header, which says where each tensor lies, and the bytes of all tensors. So one file of several
is a header with later places in it, and the bytes of the others, one after the other; no tensor is looked into.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from attnserve.checkpoint_files import INDEX_FILE, MAX_JSON_BYTES
from attnserve.records import RecordError, read_text

MAX_HEADER_BYTES = 100_000_000
"""As of the format."""
LENGTH_BYTES = 8
ALIGNMENT = 8
METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One of the files."""

    path: Path
    header: dict[str, Any]
    start: int
    """Where the bytes of its tensors begin."""
    num_bytes: int
    """Of its tensors."""


def list_shards(folder: Path) -> list[Path]:
    """The files that the index of a folder names, sorted.

    Raises:
        ValueError: the index cannot be read, or names a file that is not there or not of the folder.
    """
    path = folder / INDEX_FILE
    try:
        names = sorted({str(name) for name in json.loads(read_text(path, MAX_JSON_BYTES))["weight_map"].values()})
    except RecordError as error:
        raise ValueError(f"checkpoint: {error}") from None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ValueError(f"checkpoint: {path}: expected a weight_map of names of files, got another document") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"checkpoint: {path}: expected files of the folder, got {name[:200]!r}, which is none")
    return [folder / name for name in names]


def join_shards(shards: Sequence[Path], target: Path) -> None:
    """Write the tensors of several files into one; the same bytes whenever the files are the same.

    Raises:
        ValueError: a file is no safetensors file, or two have a tensor of one name.
        OSError: one cannot be read, or `target` not be written.
    """
    found = [_read_header(path) for path in shards]
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    base = 0
    for shard in found:
        for name, entry in shard.header.items():
            if name in header:
                raise ValueError(
                    f"checkpoint: {shard.path}: expected each tensor in one file, got {name[:200]!r} again"
                )
            first, last = entry["data_offsets"]
            header[name] = {**entry, "data_offsets": [base + first, base + last]}
        base += shard.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    with target.open("xb") as file:
        file.write(len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded)
        for shard in found:
            with shard.path.open("rb") as source:
                source.seek(shard.start)
                shutil.copyfileobj(source, file, 1024 * 1024)


def _read_header(path: Path) -> _Shard:
    with path.open("rb") as file:
        try:
            header, start = _parse_header(file)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise ValueError(f"checkpoint: {path}: expected a safetensors file, got another") from None
    num_bytes = path.stat().st_size - start
    if max((entry["data_offsets"][1] for entry in header.values()), default=0) != num_bytes:
        raise ValueError(f"checkpoint: {path}: expected as many bytes as its header says, got {num_bytes} of tensors")
    return _Shard(path=path, header=header, start=start, num_bytes=num_bytes)


def _parse_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError("header: too long")
    header = json.loads(file.read(length))
    header.pop(METADATA, None)
    for entry in header.values():
        first, last = entry["data_offsets"]
        if not isinstance(first, int) or not isinstance(last, int) or not 0 <= first <= last:
            raise ValueError("data_offsets: not within the file")
    return header, LENGTH_BYTES + length
