"""Which checkpoints may be exported, and how the others are refused."""

import hashlib
import os

import pytest

from attnserve.checkpoints import Checkpoints
from attnserve.service.exports.pinning import Pinner
from attnserve.service.problems import Invalid, Unavailable
from attnserve.service.settings import Settings
from attnserve.upload import Upload

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights"}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def upload(folder, name, files):
    for file, content in files.items():
        uploaded = Upload(Checkpoints(folder))
        uploaded.open()
        uploaded.write(content)
        uploaded.commit(name, file)


def write(folder, files):
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return str(folder)


def pin(tmp_path, checkpoint, **settings):
    return Pinner(tmp_path / "repository", Settings(**settings)).pin(checkpoint)


def test_uploads_are_beside_the_bundles(tmp_path):
    upload(tmp_path / "repository" / ".attnserve" / "checkpoints", "mine", CONTENT)
    assert pin(tmp_path, "mine") == DIGESTS


def test_or_where_settings_say(tmp_path):
    upload(tmp_path / "elsewhere", "mine", CONTENT)
    assert pin(tmp_path, "mine", checkpoints=str(tmp_path / "elsewhere")) == DIGESTS


@pytest.mark.parametrize("files", [{}, {"config.json": b"{}"}])
def test_an_upload_that_is_not_whole_is_refused(tmp_path, files):
    upload(tmp_path / "uploads", "mine", files)
    with pytest.raises(Invalid, match="checkpoint: expected") as caught:
        pin(tmp_path, "mine", checkpoints=str(tmp_path / "uploads"))
    assert [fault.field for fault in caught.value.faults] == ["checkpoint"]
    assert "--checkpoint-paths" not in caught.value.detail


def test_a_folder_may_be_read_where_settings_say_so(tmp_path):
    folder = write(tmp_path / "trained" / "mine", CONTENT)
    assert pin(tmp_path, folder, checkpoint_paths=str(tmp_path / "trained")) == DIGESTS
    for allowed in ("", str(tmp_path / "trained" / "others"), folder + "2"):
        with pytest.raises(Invalid, match="--checkpoint-paths says which folders may be read") as caught:
            pin(tmp_path, folder, checkpoint_paths=allowed)
        assert [fault.field for fault in caught.value.faults] == ["checkpoint"]


def test_a_disk_that_does_not_answer_is_503(tmp_path, monkeypatch):
    upload(tmp_path / "uploads", "mine", CONTENT)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "utime", fail)
    with pytest.raises(Unavailable, match="checkpoints cannot be read: Input/output error"):
        pin(tmp_path, "mine", checkpoints=str(tmp_path / "uploads"))
