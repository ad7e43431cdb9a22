"""Each step may be done again, after a crash at any moment of it."""

import errno
import os
import shutil

import pytest

from attnserve.bundle import hash_file
from attnserve.jobs import ExportOrder
from attnserve.repository import Repository, find_versions
from attnserve.worker import steps
from attnserve.worker.steps import StepError, activate_version, fetch, publish_bundle
from tests.worker.conftest import BUNDLE, everything_in, versions_in, write_checkpoint

JOB = "job"


@pytest.fixture
def source(tmp_path):
    """A folder and the hashes of its files."""
    return tmp_path / "source", write_checkpoint(tmp_path / "source", "a config")


@pytest.fixture
def order(source):
    folder, files = source
    return ExportOrder(checkpoint=str(folder), files=files, model="m", version=3)


@pytest.fixture
def upload(source, places):
    """The same as an upload."""
    folder, files = source
    (places.checkpoints / ".blobs").mkdir(parents=True)
    for name, sha256 in files.items():
        shutil.copy(folder / name, places.checkpoints / ".blobs" / sha256)
    return ExportOrder(checkpoint="mine", files=files, model="m", version=3)


@pytest.fixture
def attempt(order, places):
    """A bundle that is finished, and its hash."""
    folder = places.new_attempt(order, JOB)
    shutil.copytree(BUNDLE, folder)
    return folder, hash_file(folder / "manifest.json")


def never():
    pass


def make_version(places, version):
    folder = places.repository / "m" / str(version)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("by hand")


def test_what_an_earlier_attempt_left_is_gone(order, places):
    places.work(JOB).mkdir(parents=True)
    (places.work(JOB) / "config.json").write_text("half of")
    (places.work(JOB) / "tmp").mkdir()
    fetch(order, JOB, places, never)
    assert everything_in(places.work(JOB)) == ["config.json", "model.safetensors"]
    assert (places.work(JOB) / "config.json").read_text() == "a config"


def test_uploads_take_no_room_a_second_time(upload, places):
    fetch(upload, JOB, places, never)
    for name, sha256 in upload.files.items():
        assert (places.work(JOB) / name).samefile(places.checkpoints / ".blobs" / sha256)


def test_where_there_are_no_hard_links_they_are_copied(upload, places, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    fetch(upload, JOB, places, never)
    assert (places.work(JOB) / "config.json").read_text() == "a config"
    assert (places.work(JOB) / "config.json").stat().st_nlink == 1


def test_content_that_is_damaged_is_not_taken(upload, places):
    (places.checkpoints / ".blobs" / upload.files["model.safetensors"]).write_bytes(b"rotten")
    with pytest.raises(
        StepError, match=r"^checkpoint: model\.safetensors: expected sha256 \w+ as when it was asked for"
    ):
        fetch(upload, JOB, places, never)


def test_what_is_no_plain_file_is_not_waited_for(order, source, places):
    (source[0] / "config.json").unlink()
    os.mkfifo(source[0] / "config.json")
    with pytest.raises(StepError, match=r"^checkpoint: config\.json: cannot be read any more"):
        fetch(order, JOB, places, never)


def test_weights_that_are_none_are_refused_before_they_take_any_room(source, places):
    files = write_checkpoint(source[0], weights=(2**33).to_bytes(8, "little"))
    with (source[0] / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    order = ExportOrder(checkpoint=str(source[0]), files=files, model="m", version=3)
    with pytest.raises(StepError, match=r"^model\.safetensors: not a safetensors file: expected a header of at most"):
        fetch(order, JOB, places, never)
    assert not (places.work(JOB) / "model.safetensors").exists()


def test_a_disk_that_is_full_is_no_fault_of_the_checkpoint(order, places, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(steps, "_read", fail)
    with pytest.raises(StepError, match=r"^checkpoint: \w+\.\w+: cannot be copied to .*: No space left"):
        fetch(order, JOB, places, never)


def test_a_large_file_may_be_let_go_of_in_between(order, places, monkeypatch):
    monkeypatch.setattr(steps, "CHUNK_BYTES", 2)
    asked = []

    def check():
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(order, JOB, places, check)


def test_publishing_twice_is_publishing_once(order, places, attempt):
    folder, sha256 = attempt
    for _ in range(2):
        publish_bundle(order, folder, sha256, places)
    assert versions_in(places.repository) == ["m/3"]


def test_publishing_what_another_has_published_in_this_moment(order, places, attempt, monkeypatch):
    folder, sha256 = attempt
    publish = steps.publish

    def publish_twice(*arguments):
        publish(*arguments)
        publish(*arguments)

    monkeypatch.setattr(steps, "publish", publish_twice)
    publish_bundle(order, folder, sha256, places)
    assert find_versions(places.repository / "m") == [3]


def test_another_bundle_is_a_conflict(order, places, attempt):
    make_version(places, 3)
    with pytest.raises(StepError, match=r"^destination: .*m/3 exists"):
        publish_bundle(order, *attempt, places)
    assert (places.version(order) / "manifest.json").read_text() == "by hand"


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_bundle_that_is_no_more_what_was_proven_is_not_published(order, places, attempt, name):
    """As of a host that lost its power after the queue had it on disk that there is a bundle."""
    folder, sha256 = attempt
    os.truncate(folder / name, 100)
    with pytest.raises(StepError, match=rf"{name}: expected .*, got"):
        publish_bundle(order, folder, sha256, places)
    assert find_versions(places.repository / "m") == []


def test_a_bundle_that_is_gone_is_said(order, places, attempt):
    folder, sha256 = attempt
    shutil.rmtree(folder)
    with pytest.raises(StepError, match=r"^destination: .*No such file"):
        publish_bundle(order, folder, sha256, places)
    assert find_versions(places.repository / "m") == []


def test_nobody_sees_a_version_that_is_not_to_be_active(source, places, attempt):
    """The version that is served is named before the new one is there, not after."""
    folder, files = source
    order = ExportOrder(checkpoint=str(folder), files=files, model="m", version=3, activate=False)
    make_version(places, 2)
    seen = []
    publish = steps.publish

    def look_and_publish(*arguments):
        seen.append(Repository(places.repository).choose_version("m", (2, 3)))
        publish(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "publish", look_and_publish)
        publish_bundle(order, *attempt, places)
    activate_version(order, places)
    assert seen == [2]
    assert Repository(places.repository).choose_version("m", (2, 3)) == 2


def test_a_conflict_names_nothing(source, places, attempt):
    folder, files = source
    order = ExportOrder(checkpoint=str(folder), files=files, model="m", version=3, activate=False)
    make_version(places, 3)
    with pytest.raises(StepError):
        publish_bundle(order, *attempt, places)
    assert not (places.repository / "m/aliases.json").exists()


def test_activating_replaces_a_name_that_leads_nowhere(order, places):
    make_version(places, 3)
    (places.repository / "m/aliases.json").write_text('{"active": 2, "stable": 3}')
    for _ in range(2):
        activate_version(order, places)
    assert Repository(places.repository).choose_version("m", (3,)) == 3
    assert '"stable": 3' in (places.repository / "m/aliases.json").read_text()


def test_a_version_that_somebody_has_removed_is_not_made_active(order, places):
    make_version(places, 2)
    with pytest.raises(StepError, match=r"^version: 3 was published, and is gone$"):
        activate_version(order, places)
