"""Where the state of export jobs is, unless somebody says otherwise."""

from pathlib import Path

from attnserve.jobs import locate_checkpoints, locate_database


def test_all_is_in_the_repository_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The URL is absolute: whoever opens it may have another working directory.
    assert locate_database("models") == f"sqlite:///{tmp_path}/models/.attnserve/jobs.sqlite"
    assert locate_checkpoints("models") == Path("models/.attnserve/checkpoints")


def test_places_that_are_given_are_taken():
    assert locate_database("models", "postgresql://host/jobs") == "postgresql://host/jobs"
    assert locate_checkpoints("models", "/uploads") == Path("/uploads")
