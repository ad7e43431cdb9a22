"""A database that cannot be used is said at once, in one line, without its password."""

import pytest
import sqlalchemy as sa

from attnserve.worker.database import DatabaseError, open_database, take_over
from tests.conftest import free_port


def test_tables_are_made_and_made_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'new' / 'jobs.sqlite'}"
    for _ in range(2):
        engine = open_database(url)
        assert "workflow_status" in sa.inspect(engine).get_table_names()
        engine.dispose()


def test_a_server_that_is_not_there_is_named_without_the_password():
    url = f"postgresql://user:geheim@127.0.0.1:{free_port()}/jobs"
    with pytest.raises(
        DatabaseError, match=r"^--database-url \(ATTNSERVE_DATABASE_URL\): postgresql://user:\*\*\*@"
    ) as refused:
        open_database(url)
    assert "geheim" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "jobs.sqlite"
    path.write_text("not a database" * 100)
    with pytest.raises(DatabaseError, match=r"jobs\.sqlite cannot be used: file is not a database$"):
        open_database(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=r"cannot be used: .*File exists"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'jobs.sqlite'}")


@pytest.mark.parametrize("url", ["postgresql://[", "sqlite"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(DatabaseError, match=r"^--database-url"):
        open_database(url)


def test_only_jobs_that_go_on_are_taken_over(jobs):
    waiting, cancelled = jobs.add(format=0), jobs.add(model="other", format=0)
    jobs.client.cancel_workflow(cancelled)
    engine = open_database(jobs.url)
    take_over(engine, [waiting, cancelled], "1")
    engine.dispose()
    assert jobs.status(waiting).app_version == "1"
    assert jobs.status(cancelled).app_version == "0"
