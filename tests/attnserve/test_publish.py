"""A version appears whole or not at all, and never over another."""

# ruff: noqa: PT012 - what raises is the end of a block, so the block has to be there.

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attnserve.publish import (
    ABANDONED_SECONDS,
    ExportError,
    check_destination,
    publish,
    publishing,
    remove_abandoned,
)

pytestmark = pytest.mark.export


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def make_finished(folder: Path, content: str = "bundle") -> Path:
    (folder / "weights").mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    return folder


@pytest.mark.parametrize("place", ["r/m/1", "./r/m/1", "r/m/1/", "m/12", "r/../m/1", "r/A.b_c-9/999999999"])
def test_destinations_that_will_do(place: str) -> None:
    check_destination(Path(place))


@pytest.mark.parametrize(
    "place",
    ["1", "/1", "r/m/0", "r/m/01", "r/m/-1", "r/m/v1", "r/m/1.0", "r/m/latest", "r/m", "r/.tmp-1/1", "r/../1", "r/m/..",
     "r/ü/1", "r/a b/1", "r/m/1000000000", "r/m/\N{ARABIC-INDIC DIGIT ONE}", ".", ""],
)  # fmt: skip
def test_destinations_that_will_not(place: str) -> None:
    with pytest.raises(ExportError, match=r"^destination: expected REPOSITORY/model/version"):
        check_destination(Path(place))


@pytest.mark.parametrize("taken", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, taken: Callable[[Path], None]) -> None:
    (tmp_path / "m").mkdir()
    taken(tmp_path / "m" / "1")
    with pytest.raises(ExportError, match=r"^destination: .*m/1 exists"):
        check_destination(tmp_path / "m" / "1")


def test_nothing_but_the_version_is_left(tmp_path: Path) -> None:
    place = tmp_path / "new" / "repository" / "m" / "1"
    with publishing(place) as folder:
        (folder / "manifest.json").write_text("{}")
        assert folder.parent == place.parent
        # Readers pass over names that begin with a dot.
        assert folder.name.startswith(".")
        assert not place.exists()
    assert everything_in(tmp_path / "new") == [
        "repository", "repository/m", "repository/m/1", "repository/m/1/manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), publishing(tmp_path / "new" / "repository" / "m" / "1") as folder:
        make_finished(folder / "deep")
        raise error
    assert everything_in(tmp_path) == []


def test_a_failure_leaves_others_alone(tmp_path: Path) -> None:
    make_finished(tmp_path / "m" / "1")
    (tmp_path / "m" / "aliases.json").write_text('{"active": 1}')
    before = everything_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), publishing(tmp_path / "m" / "2"):
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == before


def test_a_parent_another_export_works_in_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), publishing(tmp_path / "m" / "1"):
        (tmp_path / "m" / ".tmp-other").mkdir()
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == ["m", "m/.tmp-other"]


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"^destination: .*m/1 cannot be written: .*No space left"),
        publishing(tmp_path / "m" / "1") as folder,
    ):
        make_finished(folder / "half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "model.onnx"))
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("place", ["/proc/repository/m/1", "file/m/1"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ExportError, match=rf"^destination: {place} cannot be written"), publishing(Path(place)):
        pytest.fail("nothing can be built there")
    assert everything_in(tmp_path) == ["file"]


def test_a_read_only_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop root, whom containers run tests as.
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(ExportError, match=r"^destination: .*m/1 cannot be written: .*denied"),
        publishing(tmp_path / "m" / "1"),
    ):
        pytest.fail("nothing can be built there")


def test_of_two_that_race_one_wins(tmp_path: Path) -> None:
    place = tmp_path / "m" / "1"
    first, second = (make_finished(tmp_path / "m" / name, name) for name in (".tmp-1", ".tmp-2"))
    publish(first, place)
    with pytest.raises(ExportError, match=r"^destination: .*m/1 exists; another export was first"):
        publish(second, place)
    assert (place / "manifest.json").read_text() == ".tmp-1"


def test_the_loser_of_a_race_leaves_nothing_and_takes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "m" / "1"
    with pytest.raises(ExportError, match="another export was first"), publishing(place) as folder:
        make_finished(folder / "slow")
        with publishing(place) as faster:
            (faster / "manifest.json").write_text("faster")
    assert everything_in(tmp_path) == ["m", "m/1", "m/1/manifest.json"]


def test_a_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "m" / "1"
    with pytest.raises(ExportError, match="another export was first"), publishing(place) as folder:
        (folder / "manifest.json").touch()
        place.write_text("precious")
    assert place.read_text() == "precious"


def test_what_a_killed_export_left_is_removed_a_day_later(tmp_path: Path) -> None:
    make_finished(tmp_path / ".tmp-killed")
    make_finished(tmp_path / "1")
    (tmp_path / "aliases.json").touch()
    written = (tmp_path / ".tmp-killed").stat().st_mtime
    before = everything_in(tmp_path)
    # It may still be at work, on this machine or on another that shares the repository.
    remove_abandoned(tmp_path, now=written + ABANDONED_SECONDS - 1)
    assert everything_in(tmp_path) == before
    remove_abandoned(tmp_path, now=written + ABANDONED_SECONDS + 1)
    assert everything_in(tmp_path) == ["1", "1/manifest.json", "1/weights", "aliases.json"]


def test_an_export_removes_what_was_abandoned_beside_it(tmp_path: Path) -> None:
    killed = make_finished(tmp_path / "m" / ".tmp-killed")
    os.utime(killed, (1e9, 1e9))
    other = make_finished(tmp_path / "other" / ".tmp-killed")
    os.utime(other, (1e9, 1e9))
    with publishing(tmp_path / "m" / "1") as folder:
        (folder / "manifest.json").touch()
    assert not killed.exists()
    assert other.exists()


def test_readers_pass_over_what_is_not_published(tmp_path: Path) -> None:
    from attnserve.repository import Repository

    make_finished(tmp_path / "m" / "2")
    make_finished(tmp_path / "m" / ".tmp-killed")
    make_finished(tmp_path / "unborn" / ".tmp-killed")
    make_finished(tmp_path / ".tmp-killed" / "1")
    assert Repository(tmp_path).find_models().versions == {"m": (2,)}
