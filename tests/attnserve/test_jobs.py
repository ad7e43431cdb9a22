"""Where the state of export jobs is, and what a log shows of that."""

from pathlib import Path

import pytest

from attnserve.jobs import check_database, hide_password, locate_checkpoints, locate_database


def test_all_is_in_the_repository_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The URL is absolute: whoever opens it may have another working directory.
    assert locate_database("models") == f"sqlite:///{tmp_path}/models/.attnserve/jobs.sqlite"
    assert locate_checkpoints("models") == Path("models/.attnserve/checkpoints")


def test_what_urls_take_for_something_else_is_spelt_out():
    assert locate_database("/models/100% mine?").endswith("/models/100%25%20mine%3F/.attnserve/jobs.sqlite")


def test_places_that_are_given_are_taken():
    assert locate_database("models", "postgresql://host/jobs") == "postgresql://host/jobs"
    assert locate_checkpoints("models", "/uploads") == Path("/uploads")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("sqlite:////var/jobs@home.sqlite", "sqlite:////var/jobs@home.sqlite"),
        ("sqlite:///jobs.sqlite", "sqlite:///jobs.sqlite"),
        ("postgresql://host/jobs", "postgresql://host/jobs"),
        ("postgresql:///jobs?host=/run/postgresql", "postgresql:///jobs"),
        ("postgresql://me:secret@host:5432/jobs", "postgresql://host:5432/jobs"),
        ("postgres://me:secret@host/jobs", "postgres://host/jobs"),
        ("postgresql://me:s%40cret@one,two/jobs?sslmode=require&password=secret", "postgresql://one,two/jobs"),
        ("postgresql://host/jobs?password=s@cret", "postgresql://host/jobs"),
    ],
)
def test_logs_show_no_password(url, shown):
    assert hide_password(check_database(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "jobs.sqlite",
        "sqlite://",
        "sqlite:///",
        "mysql://me:secret@host/jobs",
        "postgresql://me:secret@host",
        "postgresql://me:secret@host/",
        # Where does the password end? Some would say: at the slash.
        "postgresql://me:sec/ret@host/jobs",
        "postgresql://me:sec@ret@host/jobs",
        "postgresql://me:secret@host/jobs more",
    ],
)
def test_other_urls_are_refused_and_not_shown(url):
    with pytest.raises(ValueError, match="expected sqlite:///PATH or postgresql://") as caught:
        check_database(url)
    assert "ret" not in str(caught.value).partition("got")[2]


def test_a_password_comes_from_a_file(tmp_path):
    file = tmp_path / "password"
    file.write_text("s/e@c:r%t\n")
    url = locate_database("models", "postgresql://me@host:5432/jobs?sslmode=require", str(file))
    assert url == "postgresql://me:s%2Fe%40c%3Ar%25t@host:5432/jobs?sslmode=require"
    assert check_database(url) == url


@pytest.mark.parametrize(
    "url", ["", "sqlite:////jobs.sqlite", "postgresql://host/jobs", "postgresql://me:secret@host/jobs"]
)
def test_a_password_needs_a_place(url, tmp_path):
    file = tmp_path / "password"
    file.write_text("hidden")
    with pytest.raises(ValueError, match="database_password_file: expected database_url to be") as caught:
        locate_database("models", url, str(file))
    assert "hidden" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"database_password_file: expected a file, got .*nowhere: No such file"):
        locate_database("models", "postgresql://me@host/jobs", str(tmp_path / "nowhere"))
