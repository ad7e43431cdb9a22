"""The store of checkpoints: what is there, what is pinned, what is removed; and others at work in it all the while."""

import os
import random
import threading

import pytest

from attnserve.checkpoints import CheckpointsError, ForeignError, Stored, UnknownError
from attnserve.sweep import sweep
from tests.attnserve.conftest import WHOLE, age, everything_in, hash_text, now_of, put


def test_a_store_that_is_not_there_is_empty(store):
    assert store.describe_all() == {}
    assert store.find("mine", "config.json") is None
    for method in (store.describe, store.pin, store.remove):
        with pytest.raises(UnknownError, match=r"^checkpoint: expected one that was uploaded, got 'mine'$"):
            method("mine")
    sweep(store, 1e12)
    assert not store.folder.exists()


def test_what_was_uploaded_is_described(store):
    put(store, "b", **WHOLE, **{"tokenizer.json": "words"})
    put(store, "a", **{"card.json": "{}"})
    assert list(store.describe_all()) == ["a", "b"]
    assert store.describe_all()["b"] == store.describe("b")
    assert store.describe("a") == {"card.json": Stored(sha256=hash_text("{}"), num_bytes=2)}
    assert list(store.describe("b")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert store.find("b", "model.safetensors") == Stored(sha256=hash_text("weights"), num_bytes=7)
    assert store.find("b", "card.json") is None
    assert store.locate_blob(hash_text("weights")).read_text() == "weights"
    # For those who look with their own eyes: a folder as any other.
    assert (store.folder / "b" / "config.json").read_text() == "{}"


def test_what_is_pinned_stays_when_the_checkpoint_changes(store):
    put(store, "mine", **WHOLE)
    age(store, *WHOLE.values())
    pinned = store.pin("mine")
    assert pinned == {file: hash_text(content) for file, content in WHOLE.items()}
    put(store, "mine", **{"model.safetensors": "better weights"})
    assert store.pin("mine")["model.safetensors"] == hash_text("better weights")
    store.remove("mine")
    sweep(store, now_of(store))
    assert [store.locate_blob(sha256).read_text() for sha256 in pinned.values()] == list(WHOLE.values())


@pytest.mark.parametrize(
    ("files", "missing"), [(["config.json", "card.json"], "model.safetensors"), (["model.safetensors"], "config.json")]
)
def test_what_is_not_whole_cannot_be_pinned(store, files, missing):
    put(store, "mine", **dict.fromkeys(files, "{}"))
    with pytest.raises(UnknownError, match=rf"^checkpoint: expected {missing} in mine, got {', '.join(files)}$"):
        store.pin("mine")


def test_a_pin_is_of_one_moment(store, monkeypatch):
    put(store, "mine", **WHOLE)
    read_links, num_looks = store.read_links, 0

    def look(name):
        nonlocal num_looks
        num_looks += 1
        found = read_links(name)
        if num_looks == 1:
            put(store, "mine", **{"config.json": '{"width": 8}', "model.safetensors": "other weights"})
            # As if the first file had been looked at before, and the second one after.
            return found | {"model.safetensors": hash_text("other weights")}
        return found

    monkeypatch.setattr(store, "read_links", look)
    assert store.pin("mine") == {
        "config.json": hash_text('{"width": 8}'),
        "model.safetensors": hash_text("other weights"),
    }


@pytest.mark.parametrize("sha256", ["", "x" * 64, "a" * 64, "A" * 64, "../mine/config.json", "a" * 63])
def test_content_that_is_not_there(store, sha256):
    put(store, "mine", **WHOLE)
    with pytest.raises(UnknownError, match=r"^sha256: expected that of an uploaded file, got '"):
        store.locate_blob(sha256)


def test_content_that_a_disk_has_lost_is_missing(store):
    put(store, "mine", **WHOLE)
    store.name_blob(hash_text("weights")).unlink()
    assert list(store.describe("mine")) == ["config.json"]
    with pytest.raises(UnknownError, match=r"expected model\.safetensors in mine"):
        store.pin("mine")
    put(store, "mine", **{"model.safetensors": "weights"})
    assert len(store.pin("mine")) == 2


@pytest.mark.parametrize("name", ["", ".", "..", ".blobs", ".tmp", "-a", "a/b", "/a", "a b", "ü", "a\0", "x" * 129])
def test_names_that_no_checkpoint_has(store, name):
    put(store, "mine", **WHOLE)
    with pytest.raises(CheckpointsError, match=r"^name: expected letters, digits, '\.', '_' and '-'"):
        store.check_place(name, "config.json")
    for method in (store.describe, store.pin, store.remove):
        with pytest.raises(UnknownError):
            method(name)


@pytest.mark.parametrize("file", ["", "..", "config.json/", "CONFIG.JSON", "manifest.json", "../mine/config.json"])
def test_files_that_no_checkpoint_has(store, file):
    with pytest.raises(CheckpointsError, match=r"^file: expected one of config\.json, model\.safetensors, .*, got '"):
        store.check_place("mine", file)


def test_a_pickle_is_refused_with_what_to_do(store):
    with pytest.raises(CheckpointsError, match=r"got 'pytorch_model\.bin'; pytorch_model\.bin is a pickle, which runs"):
        store.check_place("mine", "pytorch_model.bin")


FOREIGN = {
    "a link to another place": lambda folder: (folder / "config.json").symlink_to("/etc/passwd"),
    "a link by another way": lambda folder: (folder / "config.json").symlink_to(f"../../checkpoints/.blobs/{'a' * 64}"),
    "a link to an absolute place": lambda folder: (folder / "config.json").symlink_to(
        folder.parent / ".blobs" / hash_text("{}")
    ),
    "a link to something else in the store": lambda folder: (folder / "config.json").symlink_to("../.blobs/notes"),
    "a file": lambda folder: (folder / "config.json").write_text("precious"),
    "a file of another name": lambda folder: (folder / "notes.txt").write_text("precious"),
    "a folder": lambda folder: (folder / "config.json").mkdir(),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_what_others_have_put_there_is_neither_read_nor_replaced(store, make):
    put(store, "mine", **{"model.safetensors": "weights"})
    make(store.folder / "mine")
    before = everything_in(store)
    assert list(store.describe("mine")) == ["model.safetensors"]
    with pytest.raises(ForeignError, match=r"^name: expected one that is free or was uploaded, got mine, which holds"):
        store.remove("mine")
    with pytest.raises(ForeignError):
        put(store, "mine", **WHOLE)
    sweep(store, now_of(store))
    assert everything_in(store) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda place: place.symlink_to("whole"),
        lambda place: place.symlink_to("nothing"),
        lambda place: place.write_text("precious"),
    ],
    ids=["link", "link to nothing", "file"],
)
def test_a_checkpoint_is_a_folder(store, make):
    put(store, "whole", **WHOLE)
    make(store.folder / "mine")
    assert list(store.describe_all()) == ["whole"]
    assert store.find("mine", "config.json") is None
    with pytest.raises(UnknownError):
        store.remove("mine")
    with pytest.raises(ForeignError):
        put(store, "mine", **WHOLE)
    sweep(store, now_of(store))
    assert os.path.lexists(store.folder / "mine")


def test_a_checkpoint_is_removed_whole(store):
    put(store, "mine", **WHOLE)
    put(store, "other", **WHOLE)
    store.remove("mine")
    assert list(store.describe_all()) == ["other"]
    assert not [path for path in everything_in(store) if path.startswith(("mine", ".tmp/"))]
    with pytest.raises(UnknownError):
        store.remove("mine")
    assert store.pin("other")


def test_a_file_is_removed_and_the_checkpoint_with_the_last_one(store):
    put(store, "mine", **WHOLE)
    store.remove_file("mine", "config.json")
    assert list(store.describe("mine")) == ["model.safetensors"]
    for file in ("config.json", "notes.txt", "../mine/model.safetensors"):
        with pytest.raises(UnknownError, match=r"^file: expected one that mine has, got '"):
            store.remove_file("mine", file)
    store.remove_file("mine", "model.safetensors")
    assert list(store.describe_all()) == []
    assert not (store.folder / "mine").exists()
    with pytest.raises(UnknownError):
        store.remove_file("mine", "config.json")


def test_all_at_once(store):
    """Uploads, removals, pins and sweeps of a few checkpoints: nothing that is pinned is ever missing or torn."""
    names, contents = ("a", "b"), ("x", "y", "z")
    problems, num_pins = [], 0
    deadline = threading.Event()

    def work(seed):
        nonlocal num_pins
        draw = random.Random(seed)
        while not deadline.is_set():
            name, content = draw.choice(names), draw.choice(contents)
            try:
                match draw.randrange(5):
                    case 0 | 1:
                        put(store, name, **{"config.json": content, "model.safetensors": f"weights {content}"})
                    case 2:
                        for sha256 in store.pin(name).values():
                            assert hash_text(store.locate_blob(sha256).read_text()) == sha256
                        num_pins += 1
                    case 3:
                        store.remove(name)
                    case 4:
                        sweep(store, now=0)
            except UnknownError as error:
                # Removed, not begun, or half uploaded.
                if "sha256" in str(error):
                    problems.append(error)
            except Exception as error:
                problems.append(error)
                raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while num_pins < 50 and not problems and any(thread.is_alive() for thread in threads):
        deadline.wait(0.01)
    deadline.set()
    for thread in threads:
        thread.join()
    assert problems == []
    sweep(store, now_of(store))
    assert not list((store.folder / ".tmp").iterdir())
    for files in store.describe_all().values():
        assert all(store.locate_blob(stored.sha256) for stored in files.values())
