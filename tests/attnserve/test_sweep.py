"""Sweeps: what nobody needs goes, what anybody needs stays, whatever happens meanwhile."""

import os
from pathlib import Path

import pytest

from attnserve.sweep import UNUSED_SECONDS, sweep
from attnserve.upload import Upload
from tests.attnserve.conftest import WHOLE, age, everything_in, hash_text, now_of, put


def test_content_goes_when_nobody_has_needed_it_for_a_day(store):
    put(store, "mine", **WHOLE)
    put(store, "gone", **{"config.json": "{}", "model.safetensors": "old weights"})
    put(store, "gone", **{"model.safetensors": "new weights"})
    store.remove("gone")
    now = now_of(store)
    sweep(store, now + UNUSED_SECONDS - 10)
    assert store.locate_blob(hash_text("new weights"))
    sweep(store, now + UNUSED_SECONDS + 10)
    contents = {hash_text(content) for content in WHOLE.values()}
    assert {path.name for path in (store.folder / ".blobs").iterdir()} == contents
    assert not list((store.folder / ".tmp").iterdir())
    assert store.pin("mine")


def test_an_upload_makes_content_new_again(store):
    put(store, "mine", **WHOLE)
    age(store, *WHOLE.values())
    put(store, "other", **WHOLE)
    store.remove("mine")
    store.remove("other")
    sweep(store, now_of(store))
    assert store.locate_blob(hash_text("weights"))


@pytest.mark.parametrize("again", ["upload", "pin", "link"])
def test_content_that_is_needed_again_while_it_is_swept_stays(store, monkeypatch, again):
    put(store, "mine", **WHOLE)
    pinned = store.pin("mine")
    links = {file: os.readlink(store.folder / "mine" / file) for file in WHOLE}
    store.remove("mine")
    age(store, *WHOLE.values())
    list_used = store.list_used

    def come_in_between():
        monkeypatch.setattr(store, "list_used", list_used)
        used = list_used()
        # The sweep has seen that nobody needs it.
        if again == "upload":
            put(store, "mine", **WHOLE)
        elif again == "pin":
            for sha256 in pinned.values():
                os.utime(store.name_blob(sha256))
        else:
            (store.folder / "mine").mkdir()
            for file, target in links.items():
                (store.folder / "mine" / file).symlink_to(target)
        return used

    monkeypatch.setattr(store, "list_used", come_in_between)
    sweep(store, now_of(store))
    assert [store.locate_blob(sha256).read_text() for sha256 in pinned.values()] == list(WHOLE.values())
    assert not list((store.folder / ".tmp").iterdir())


def test_what_a_killed_sweep_has_taken_aside_is_put_back_or_goes(store):
    put(store, "mine", **WHOLE)
    put(store, "gone", **{"card.json": "old"})
    store.remove("gone")
    age(store, *WHOLE.values(), "old")
    for content in (*WHOLE.values(), "old"):
        store.name_blob(hash_text(content)).rename(store.folder / ".tmp" / f"swept-{hash_text(content)}")
    sweep(store, now_of(store))
    assert len(store.pin("mine")) == 2
    assert not store.name_blob(hash_text("old")).exists()
    assert not list((store.folder / ".tmp").iterdir())


def test_what_killed_processes_have_left_goes_at_once(store):
    put(store, "mine", **WHOLE)
    before = everything_in(store)
    temporary = store.folder / ".tmp"
    (temporary / "half").write_text("half a file")
    (temporary / "whole").write_text("whole file, about to be renamed")
    (temporary / "whole").chmod(0o444)
    (temporary / "link").symlink_to(f"../.blobs/{'a' * 64}")
    (temporary / "removed").mkdir()
    (temporary / "removed" / "config.json").symlink_to("/etc/passwd")
    (store.folder / "begun").mkdir()
    sweep(store, now_of(store))
    assert everything_in(store) == before
    assert Path("/etc/passwd").exists()


def test_an_upload_that_is_going_on_is_not_swept(store):
    upload = Upload(store)
    upload.open()
    upload.write(b"wei")
    sweep(store, now_of(store) + 10 * UNUSED_SECONDS)
    upload.write(b"ghts")
    upload.commit("mine", "model.safetensors")
    assert store.find("mine", "model.safetensors").sha256 == hash_text("weights")


def test_where_there_are_no_locks_uploads_are_swept_by_age(store, monkeypatch):
    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    upload = Upload(store)
    upload.open()
    sweep(store, now_of(store) + UNUSED_SECONDS - 10)
    assert list((store.folder / ".tmp").iterdir())
    sweep(store, now_of(store) + UNUSED_SECONDS + 10)
    assert not list((store.folder / ".tmp").iterdir())
    upload.abort()
