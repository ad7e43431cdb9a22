"""Checkpoints in folders of the machine: which folders, which files, and nothing else."""

import hashlib
import os
from pathlib import Path

import pytest

from attnserve.checkpoint_files import FILES, FolderError, explain_pickle, names_class, pin_folder


def make_checkpoint(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for file in files or FILES:
        (folder / file).write_text(file)
    return folder


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_every_file_is_hashed(tmp_path):
    folder = make_checkpoint(tmp_path / "a" / "b")
    (folder / "notes.txt").write_text("")
    assert pin_folder(str(folder), [tmp_path]) == {file: hash_text(file) for file in FILES}
    (folder / "card.json").unlink()
    (folder / "tokenizer.json").unlink()
    pinned = pin_folder(f"{folder}/../b/", [tmp_path / "other", str(tmp_path / "a" / "b")])
    assert pinned == {file: hash_text(file) for file in ("config.json", "model.safetensors")}


@pytest.mark.parametrize(
    "asked",
    [
        "{}/out",
        "{}/allowed/../out",
        "{}/allowed/link",
        "{}/allowed-not",
        "{}",
        "/",
        "allowed/in",
        "",
        "{}/allowed/in\0",
    ],
)
def test_a_folder_elsewhere_is_refused_whether_it_is_there_or_not(tmp_path, monkeypatch, asked):
    for name in ("out", "allowed/in", "allowed-not"):
        make_checkpoint(tmp_path / name)
    (tmp_path / "allowed" / "link").symlink_to("../out")
    monkeypatch.chdir(tmp_path)
    folder = asked.format(tmp_path)
    with pytest.raises(FolderError) as caught:
        pin_folder(folder, [tmp_path / "allowed"])
    assert str(caught.value) == f"checkpoint: expected a folder in {tmp_path}/allowed, got {folder!r}"


def test_without_allowed_folders_there_are_uploads_only(tmp_path):
    folder = make_checkpoint(tmp_path / "a")
    with pytest.raises(FolderError, match=r"^checkpoint: expected the name of an uploaded checkpoint, got '/"):
        pin_folder(str(folder), [])


def test_links_are_followed_within_what_is_allowed(tmp_path):
    """As caches of downloaded models have them."""
    folder = make_checkpoint(tmp_path / "hub" / "snapshots" / "1", "config.json")
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "blobs" / "abc").write_text("weights")
    (folder / "model.safetensors").symlink_to("../../blobs/abc")
    (tmp_path / "alias").symlink_to("hub")
    for allowed in (tmp_path / "hub", tmp_path / "alias"):
        for asked in (folder, tmp_path / "alias" / "snapshots" / "1"):
            assert pin_folder(str(asked), [allowed])["model.safetensors"] == hash_text("weights")
    with pytest.raises(FolderError, match=r"^checkpoint: model.safetensors: .* got a link that leads elsewhere$"):
        pin_folder(str(folder), [tmp_path / "hub" / "snapshots"])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_links_out_of_it_are_refused(tmp_path, file, target):
    (tmp_path / "secret").write_text("secret")
    folder = make_checkpoint(tmp_path / "allowed" / "mine")
    (folder / file).unlink()
    (folder / file).symlink_to(target)
    with pytest.raises(FolderError, match=rf"^checkpoint: {file}: expected a file of .*, got a link that leads"):
        pin_folder(str(folder), [tmp_path / "allowed"])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("make", "got"),
    [
        (Path.mkdir, "not a plain file|Is a directory"),
        (os.mkfifo, "not a plain file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nothing"), "No such file or directory"),
    ],
    ids=["folder", "pipe", "loop", "nowhere"],
)
def test_what_is_no_plain_file_is_refused(tmp_path, file, make, got):
    folder = make_checkpoint(tmp_path / "mine")
    (folder / file).unlink()
    make(folder / file)
    with pytest.raises(FolderError, match=rf"^checkpoint: {file}: expected a file that can be read, got: ({got})$"):
        pin_folder(str(folder), [tmp_path])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_checkpoint_has_config_and_weights(tmp_path, file):
    folder = make_checkpoint(tmp_path / "mine")
    (folder / file).unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(
        FolderError, match=rf"^checkpoint: expected {file} in .*/mine, got none; pytorch_model.bin is a"
    ):
        pin_folder(str(folder), [tmp_path])
    with pytest.raises(FolderError, match=r"^checkpoint: expected config.json in .*/none, got none$"):
        pin_folder(str(tmp_path / "none"), [tmp_path])


def test_a_pickle_is_explained():
    assert explain_pickle(["a.json", "model.safetensors", "bin"]) == ""
    assert explain_pickle(["b.pth", "a.pt"]).startswith("; a.pt is a pickle, which runs code when loaded: convert it")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"architectures": ["BertForMaskedLM"]}', True),
        ('{"vocabulary_size": 3}', False),
        ('["architectures"]', False),
        ("{", False),
        ("[" * 100_000, False),
        (None, False),
    ],
    ids=["transformers", "ours", "a list", "no JSON", "deep", "no file"],
)
def test_configs_of_transformers_are_told_apart(tmp_path, config, expected):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert names_class(tmp_path) is expected
