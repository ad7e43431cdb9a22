"""Uploads: whole and on disk, or nothing."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from attnserve import upload as upload_module
from attnserve.checkpoints import CheckpointsError, DigestError, ForeignError, Stored
from attnserve.sweep import sweep
from attnserve.upload import Upload

DIGEST = hashlib.sha256(b"weights").hexdigest()


def begin(store, content: bytes = b"weights") -> Upload:
    upload = Upload(store)
    upload.open(len(content))
    upload.write(content)
    return upload


def list_files(store) -> list[str]:
    """Without the store's own two folders."""
    found = (path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if not path.is_dir())
    return sorted(found)


def test_a_file_is_made_of_its_pieces(store):
    upload = begin(store, b"")
    for piece in (b"wei", bytearray(b"ght"), b"", b"s"):
        upload.write(piece)
    assert upload.num_bytes == 7
    assert store.describe_all() == {}
    assert upload.commit("mine", "model.safetensors", DIGEST) == Stored(sha256=DIGEST, num_bytes=7, is_new=True)
    assert list_files(store) == [f".blobs/{DIGEST}", "mine/model.safetensors"]
    assert os.readlink(store.folder / "mine" / "model.safetensors") == f"../.blobs/{DIGEST}"
    # Committed, it is not the upload's any more.
    upload.abort()
    assert store.locate_blob(DIGEST).read_bytes() == b"weights"


def test_content_is_nobodys_to_change(store):
    begin(store).commit("mine", "config.json")
    assert store.locate_blob(DIGEST).stat().st_mode & 0o222 == 0


def test_replaced_or_equal_is_not_new(store):
    assert begin(store).commit("mine", "config.json").is_new
    assert not begin(store).commit("mine", "config.json").is_new
    assert not begin(store, b"other").commit("mine", "config.json").is_new
    assert begin(store).commit("other", "config.json").is_new
    assert begin(store).commit("mine", "card.json").is_new


def test_an_upload_that_is_given_up_leaves_nothing(store):
    upload = begin(store)
    upload.abort()
    upload.abort()
    assert list_files(store) == []
    never_opened = Upload(store)
    never_opened.abort()


@pytest.mark.parametrize(
    ("name", "file", "expected", "error"),
    [
        ("mine", "config.json", "0" * 64, DigestError),
        ("../mine", "config.json", None, CheckpointsError),
        ("mine", "../config.json", None, CheckpointsError),
        ("theirs", "config.json", None, ForeignError),
    ],
)
def test_what_is_refused_leaves_nothing(store, name, file, expected, error):
    upload = begin(store)
    (store.folder / "theirs").mkdir()
    (store.folder / "theirs" / "precious").touch()
    with pytest.raises(error):
        upload.commit(name, file, expected)
    assert list_files(store) == ["theirs/precious"]


def test_a_wrong_digest_says_both(store):
    with pytest.raises(DigestError, match=f"^sha256: expected content with {'0' * 64}, got {DIGEST}$"):
        begin(store).commit("mine", "config.json", "0" * 64)


def test_more_than_is_free_is_refused_before_it_comes(store):
    upload = Upload(store)
    with pytest.raises(OSError, match="No space left on device") as caught:
        upload.open(1 << 60)
    assert caught.value.errno == errno.ENOSPC
    upload.abort()
    assert list_files(store) == []


class FullDisk:
    """A file that holds three bytes."""

    def __init__(self, *arguments):
        self.file = upload_module_file(*arguments)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, view):
        if self.file.tell() == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(view[:3])


upload_module_file = upload_module.FileIO


def test_a_disk_that_is_full_on_the_way_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(upload_module, "FileIO", FullDisk)
    upload = Upload(store)
    upload.open()
    with pytest.raises(OSError, match="No space left on device"):
        upload.write(b"weights")
    upload.abort()
    assert list_files(store) == []


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_a_disk_that_fails_at_the_end_leaves_nothing(store, monkeypatch, step):
    upload = begin(store)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output error"):
        upload.commit("mine", "config.json")
    monkeypatch.undo()
    assert list_files(store) == []


def test_one_thread_gives_it_up_while_another_writes(store, monkeypatch):
    upload = begin(store)
    is_writing, may_end = threading.Event(), threading.Event()
    write = upload._file.write

    class Slow:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, view):
            is_writing.set()
            may_end.wait()
            return write(view)

    file, upload._file = upload._file, Slow()
    writer = threading.Thread(target=upload.write, args=(b"more",))
    writer.start()
    is_writing.wait()
    aborter = threading.Thread(target=upload.abort)
    aborter.start()
    assert aborter.is_alive()
    may_end.set()
    writer.join()
    aborter.join()
    assert list_files(store) == []


@pytest.mark.parametrize("num_times", [1, 5])
def test_a_folder_that_is_removed_meanwhile_is_made_again(store, monkeypatch, num_times):
    upload = begin(store)
    left = num_times
    target_of = upload_module.target_of

    def remove_first(sha256):
        nonlocal left
        if left:
            left -= 1
            os.rmdir(store.folder / "mine")
        return target_of(sha256)

    monkeypatch.setattr(upload_module, "target_of", remove_first)
    assert upload.commit("mine", "config.json").is_new
    assert list_files(store) == [f".blobs/{DIGEST}", "mine/config.json"]


def test_a_store_that_is_gone_is_an_error_not_a_loop(store, monkeypatch):
    upload = begin(store)

    def lose(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(upload_module.Path, "symlink_to", lose)
    with pytest.raises(FileNotFoundError):
        upload.commit("mine", "config.json")


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(store, monkeypatch):
    flock, num_calls = upload_module.fcntl.flock, 0

    def sweep_first(file, how):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            os.unlink(file.name)
        return flock(file, how)

    monkeypatch.setattr(upload_module.fcntl, "flock", sweep_first)
    upload = begin(store)
    monkeypatch.undo()
    sweep(store, 0)
    assert upload.commit("mine", "config.json").is_new


KILLED = """
import sys
from attnserve.checkpoints import Checkpoints
from attnserve.upload import Upload
upload = Upload(Checkpoints(sys.argv[1]))
upload.open()
upload.write(b"wei")
print("written", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_was_writing_is_swept(store):
    command = [sys.executable, "-c", KILLED, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        sweep(store, 0)
        (half,) = list_files(store)
        assert half.startswith(".tmp/")
        process.send_signal(signal.SIGKILL)
    sweep(store, 0)
    assert list_files(store) == []
