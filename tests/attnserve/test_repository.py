"""Which models and versions a repository holds, and which one is active; it changes under the hands of others."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.bundle import BundleError
from attnserve.repository import Repository, find_versions


def add(repository, *names):
    for name in names:
        folder = repository / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")


def aliases_of(repository, name):
    return json.loads((repository / name / "aliases.json").read_text())


def test_models_and_versions(tmp_path):
    add(tmp_path, "b/1", "a/2", "a/10", "a/.tmp-1", "a/01", "a/0", "a/x", ".hidden/1", "-dash/1", "empty/none")
    (tmp_path / "file").write_text("")
    (tmp_path / "a" / "3").mkdir()
    assert Repository(tmp_path).find_models().versions == {"a": (2, 10), "b": (1,)}
    assert list(Repository(tmp_path).find_models().versions) == ["a", "b"]
    assert find_versions(tmp_path / "a") == [2, 10]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_a_model_that_cannot_be_read_is_one_model(tmp_path, make_unreadable, number):
    add(tmp_path, "a/1", "b/1", "b/2", "c/1")
    repository = Repository(tmp_path)
    known = repository.find_models().versions
    make_unreadable(tmp_path / "b", number)
    contents = repository.find_models(known)
    assert list(contents.versions.items()) == [("a", (1,)), ("b", (1, 2)), ("c", (1,))]
    assert contents.unreadable == {"b": f"{tmp_path / 'b'}: cannot be read: {os.strerror(number)}"}
    # Of one that could never be read it is not even known whether it is a model.
    assert repository.find_models().versions["b"] == ()
    with pytest.raises(BundleError, match=r"b/aliases\.json: cannot be read"):
        repository.choose_version("b", (1, 2))
    with pytest.raises(BundleError, match=r"b/aliases\.json: cannot be read"):
        repository.activate("b", 1)


def test_a_version_that_cannot_be_read_is_one_that_may_be_there(tmp_path, make_unreadable):
    add(tmp_path, "a/1", "a/2")
    make_unreadable(tmp_path / "a" / "2", errno.EACCES)
    contents = Repository(tmp_path).find_models()
    # Whoever loads it says why it cannot be; the other one is nobody's affair.
    assert (contents.versions, contents.unreadable) == ({"a": (1, 2)}, {})


def test_a_model_that_vanishes_while_it_is_looked_at_is_none(tmp_path, make_unreadable):
    add(tmp_path, "a/1", "b/1")
    make_unreadable(tmp_path / "b", errno.ENOENT)
    contents = Repository(tmp_path).find_models({"b": (1,)})
    assert (contents.versions, contents.unreadable) == ({"a": (1,)}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 10),
        ('{"active": 2}', 2),
        ('{"active": 10, "stable": 2}', 10),
        ('{"active": 3}', "active: expected null or one of [2, 10], got 3"),
        ('{"active": true}', "got True"),
        ('{"active": 2.0}', "got 2.0"),
        ('{"active": "2"}', "got '2'"),
        ('{"active": [2]}', "got [2]"),
        ('{"active": false}', "got False"),
        ("{}", 'expected {"active": version}'),
        ("[]", 'expected {"active": version}'),
        ("null", 'expected {"active": version}'),
        ('"active"', 'expected {"active": version}'),
        ("", 'expected {"active": version}'),
        ("{", 'expected {"active": version}'),
        ("[" * 10**5, 'expected {"active": version}'),
        ("\ud800", 'expected {"active": version}'),
        ("9" * 5000, 'expected {"active": version}'),
    ],
)
def test_version(tmp_path, text, expected):
    add(tmp_path, "a/2", "a/10")
    if text is not None:
        (tmp_path / "a" / "aliases.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    repository = Repository(tmp_path)
    if isinstance(expected, int):
        assert repository.choose_version("a", (2, 10)) == expected
        return
    with pytest.raises(BundleError) as caught:
        repository.choose_version("a", (2, 10))
    assert expected in str(caught.value)
    assert str(tmp_path / "a" / "aliases.json") in str(caught.value)
    assert len(str(caught.value)) < 600


def test_none_is_active(tmp_path):
    add(tmp_path, "a/1")
    (tmp_path / "a" / "aliases.json").write_text('{"active": null, "stable": 1}')
    assert Repository(tmp_path).choose_version("a", (1,)) is None


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("nothing", "file"):
        with pytest.raises(BundleError, match="repository: expected a folder of bundles"):
            Repository(tmp_path / place)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_a_repository_that_cannot_be_read(tmp_path, make_unreadable, number):
    add(tmp_path, "a/1")
    repository = Repository(tmp_path)
    known = repository.find_models().versions
    make_unreadable(tmp_path, number)
    contents = repository.find_models(known)
    trouble = f"the repository cannot be read: {os.strerror(number)}"
    assert (contents.versions, contents.unreadable, contents.trouble) == (known, {}, trouble)
    with pytest.raises(BundleError, match=f"repository: {tmp_path}: cannot be read: {os.strerror(number)}"):
        Repository(tmp_path)


@pytest.mark.parametrize("inside", ["a", "a/1"])
def test_a_folder_below_the_repository_is_refused_with_the_right_one(tmp_path, inside):
    add(tmp_path, "a/1")
    with pytest.raises(BundleError, match="expected the folder above MODEL/VERSION"):
        Repository(tmp_path / inside)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    aliases=st.none() | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none()),
    versions=st.lists(st.none() | st.integers(1, 3), min_size=1, max_size=4),
)
def test_what_is_activated_is_chosen_and_other_aliases_stay(tmp_path_factory, aliases, versions):
    folder = tmp_path_factory.mktemp("repository")
    add(folder, "a/1", "a/2", "a/3")
    if aliases is not None:
        (folder / "a" / "aliases.json").write_text(json.dumps(aliases | {"active": 1}))
    repository = Repository(folder)
    for version in versions:
        repository.activate("a", version)
        assert repository.choose_version("a", (1, 2, 3)) == version
        assert aliases_of(folder, "a") == (aliases or {}) | {"active": version}
    assert sorted(os.listdir(folder / "a")) == ["1", "2", "3", "aliases.json"]


def test_readers_see_the_old_aliases_or_the_new_never_half(tmp_path):
    add(tmp_path, "a/1", "a/2")
    repository = Repository(tmp_path)
    # So long that it is written in several pieces.
    (tmp_path / "a" / "aliases.json").write_text(json.dumps({"active": 1, "note": "x" * 300_000}))
    seen, problems, is_over = set(), [], threading.Event()

    def read():
        while not is_over.is_set():
            try:
                seen.add(repository.choose_version("a", (1, 2)))
            except BundleError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in (2, 1) * 40:
            repository.activate("a", version)
    finally:
        is_over.set()
        reader.join()
    assert problems == []
    assert seen == {1, 2}


def test_two_writers_leave_one_whole_file(tmp_path):
    add(tmp_path, *(f"a/{version}" for version in range(1, 5)))
    (tmp_path / "a" / "aliases.json").write_text('{"active": 1, "stable": 3}')

    def write(version):
        for _ in range(20):
            Repository(tmp_path).activate("a", version)

    threads = [threading.Thread(target=write, args=(version,)) for version in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert aliases_of(tmp_path, "a")["stable"] == 3
    assert sorted(os.listdir(tmp_path / "a")) == ["1", "2", "3", "4", "aliases.json"]


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_repository_that_cannot_be_written(tmp_path, monkeypatch, step):
    add(tmp_path, "a/1", "a/2")
    (tmp_path / "a" / "aliases.json").write_text('{"active": 1}')

    # Permissions do not stop root, whom containers run tests as.
    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, step, refuse)
        # Reading goes through `open` too, and is not what fails here.
        patched.setattr("attnserve.repository._read_aliases", lambda _: {"active": 1})
        with pytest.raises(BundleError, match=r"aliases\.json: cannot be written: Read-only file system"):
            Repository(tmp_path).activate("a", 2)
    assert aliases_of(tmp_path, "a") == {"active": 1}
    assert sorted(os.listdir(tmp_path / "a")) == ["1", "2", "aliases.json"]


def test_malformed_aliases_are_not_overwritten(tmp_path):
    add(tmp_path, "a/1")
    (tmp_path / "a" / "aliases.json").write_text("{")
    with pytest.raises(BundleError, match="expected"):
        Repository(tmp_path).activate("a", 1)
    assert (tmp_path / "a" / "aliases.json").read_text() == "{"


@pytest.mark.parametrize("link", ["a", "a/1"])
def test_links_are_refused(tmp_path, link):
    outside = tmp_path / "outside"
    add(outside, "a/1")
    repository = tmp_path / "repository"
    add(repository, "b/1", *(["a/2"] if link == "a/1" else []))
    (repository / link).symlink_to(outside / link)
    with pytest.raises(BundleError, match=rf"{link}: expected a folder of the repository, got a link"):
        Repository(repository).locate("a", 1)
    assert Repository(repository).locate("b", 1) == repository / "b" / "1"


def test_the_repository_itself_may_be_a_link(tmp_path):
    add(tmp_path / "elsewhere", "a/1")
    (tmp_path / "repository").symlink_to("elsewhere")
    repository = Repository(tmp_path / "repository")
    assert repository.find_models().versions == {"a": (1,)}
    assert repository.locate("a", 1) == tmp_path / "repository" / "a" / "1"


def test_a_fingerprint_changes_with_the_bundle(tmp_path):
    add(tmp_path, "a/1", "a/2")
    repository = Repository(tmp_path)
    before = repository.fingerprint("a", 1)
    assert before == repository.fingerprint("a", 1) != repository.fingerprint("a", 2)
    os.utime(tmp_path / "a" / "1" / "manifest.json", ns=(0, 1))
    touched = repository.fingerprint("a", 1)
    assert touched != before
    (tmp_path / "a" / "1" / "manifest.json").unlink()
    assert repository.fingerprint("a", 1) == repository.fingerprint("b", 7) == ()
    assert len({before, touched, ()}) == 3
