"""Weights in several files become one, byte for byte what they were."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attnserve.shards import join_shards, list_shards

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.int64),
    "c": np.ones((0, 4), np.float16),
    "d": np.arange(3, dtype=np.uint8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of an odd number of bytes, and an index."""
    places = {"a": 1, "d": 1, "b": 2, "c": 3}
    names = {tensor: f"model-{place:05}-of-00003.safetensors" for tensor, place in places.items()}
    for name in set(names.values()):
        save_file({tensor: TENSORS[tensor] for tensor in names if names[tensor] == name}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_all_tensors_are_in_one_file(folder: Path) -> None:
    join_shards(list_shards(folder), folder / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_it_is_the_same_file_every_time(folder: Path) -> None:
    for name in ("first", "second"):
        join_shards(list_shards(folder), folder / name)
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": [1]}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json: expected a weight_map of names of files, got another document"):
        list_shards(folder)


@pytest.mark.parametrize("name", ["model-00004-of-00003.safetensors", "../model.safetensors", ".."])
def test_files_that_are_not_of_the_folder_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"index\.json: expected files of the folder, got .*, which is none"):
        list_shards(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x01\0\0\0\0\0\0\x005",
        b'\x0a\0\0\0\0\0\0\0{"a": {}}  ',
        b'\x1d\0\0\0\0\0\0\0{"a": {"data_offsets":[3,1]}} ',
    ],
    ids=["empty", "endless header", "list", "number", "no places", "backwards"],
)
def test_a_file_that_is_no_safetensors_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model-00002-of-00003.safetensors").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model-00002-of-00003\.safetensors: expected a safetensors file, got another"
    ):
        join_shards(list_shards(folder), folder / "model.safetensors")


def test_a_file_that_was_cut_off_is_refused(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"expected as many bytes as its header says, got 39 of tensors"):
        join_shards(list_shards(folder), folder / "model.safetensors")


def test_a_tensor_that_two_files_have_is_refused(folder: Path) -> None:
    save_file({"a": TENSORS["a"]}, folder / "model-00003-of-00003.safetensors")
    with pytest.raises(ValueError, match="expected each tensor in one file, got 'a' again"):
        join_shards(list_shards(folder), folder / "model.safetensors")
