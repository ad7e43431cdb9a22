"""The head of a weights file: what is no safetensors file is told before anything reads it."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from attnserve.weights import MAX_HEADER_BYTES, WeightsError, check_head

GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}, {"made by": "tests"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("content", [GOOD, save({}), save({"none": torch.zeros(0)})], ids=["tensors", "none", "empty"])
def test_whole_files_pass(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    check_head(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected at least 8 bytes, got 0"),
        (GOOD[:7], "expected at least 8 bytes, got 7"),
        (GOOD[:50], r"truncated: expected a header of \d+ bytes, got 42"),
        (GOOD[:-1], "truncated: expected 32 bytes of tensors, got 31"),
        (GOOD + b"12", "expected 32 bytes of tensors, got 2 more after the last one"),
        (b"\xff" * 8 + GOOD[8:], rf"expected a header of at most {MAX_HEADER_BYTES} bytes, got 18446744073709551615"),
        (with_header(b"{nothing}"), "expected a header in JSON, got something else"),
        (with_header(b"[" * 100_000), "expected a header in JSON, got something else"),
        (with_header(b"\xff\xfe"), "expected a header in JSON, got something else"),
        (with_header(b"[]"), "expected a header that is a JSON object, got list"),
    ],
)
def test_what_is_wrong_is_said(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{message}$"):
        check_head(path)


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_pickle_is_known_by_its_first_bytes(path: Path, is_archive: bool) -> None:
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(WeightsError, match=r"^a pickle, which runs code when loaded: convert it"):
        check_head(path)


def test_a_header_whose_length_looks_like_a_pickle_is_none(path: Path) -> None:
    # 0x0280 bytes: the first two are those of a pickle of protocol 2.
    header = json.dumps({"__metadata__": {}}).encode().ljust(0x280)
    path.write_bytes(with_header(header))
    assert path.read_bytes()[:2] == b"\x80\x02"
    check_head(path)


def test_a_header_of_gigabytes_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With holes: it takes no room.
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2 << 30))
        file.truncate(3 << 30)
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=rf"^expected a header of at most {MAX_HEADER_BYTES} bytes, got 2147483648$"):
        check_head(path)


@pytest.mark.parametrize("entry", [1, [], {}, {"data_offsets": 5}, {"data_offsets": [0]}, {"data_offsets": [0, "x"]}])
def test_entries_that_are_none_are_left_to_the_library(path: Path, entry: object) -> None:
    path.write_bytes(with_header(json.dumps({"a": entry}).encode()))
    check_head(path)
