"""Several workers on one PostgreSQL, which may go away for a while."""

import contextlib
import signal
import time

import pytest

import tests.soak.conftest  # noqa: F401 - makes soak importable
from soak.postgres import find_binaries, serving_postgres
from tests.worker.conftest import Jobs, process, versions_in, wait_until
from tests.worker.test_worker import read_process, waits_once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def server():
    with serving_postgres() as server:
        yield server


@pytest.fixture
def url(server):
    return server.url


@pytest.fixture
def jobs(url, places):
    jobs = Jobs(url, places)
    yield jobs
    jobs.client.destroy()


def test_a_worker_that_is_killed_and_never_comes_back_costs_no_job(url, places, jobs, tmp_path):
    hanging = jobs.add(waits_once(tmp_path), model="hanging")
    others = [jobs.add(model=f"m{number}") for number in range(8)]
    with process(url, places, name="first") as first:
        read_process(tmp_path)
        with process(url, places, name="second"):
            # They share the work.
            wait_until(lambda: jobs.status(others[0]).status == "SUCCESS")
            first.kill()
            outcomes = [jobs.outcome(job) for job in (hanging, *others)]
    assert [outcome["state"] for outcome in outcomes] == ["succeeded"] * 9
    assert jobs.status(hanging).executor_id == "second"
    assert versions_in(places.repository) == ["hanging/1", *(f"m{number}/1" for number in range(8))]
    assert places.find_jobs() == set()


def test_two_that_start_at_once_both_start(url, places):
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(process(url, places, name=name)) for name in ("a", "b", "c")]
        for worker in workers:
            wait_until(lambda worker=worker: "ready" in worker.stderr.readline())


def test_a_database_that_is_away_for_a_while_is_waited_for(server, url, places, jobs, tmp_path):
    go_on = tmp_path / "go on"
    job = jobs.add(
        f"open({str(tmp_path / 'seen')!r}, 'w').write('1')\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.1)"
    )
    with process(url, places) as worker:
        read_process(tmp_path)
        server.stop()
        try:
            # It is built while nobody can be told.
            go_on.touch()
            wait_until(lambda: any(places.repository.glob("m/.tmp-*/manifest.json")))
        finally:
            server.start()
        assert jobs.outcome(job)["state"] == "succeeded"
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "cannot look after jobs now" in log or "Database connection failed" in log
    assert versions_in(places.repository) == ["m/1"]


def test_told_to_stop_while_the_database_is_away_it_stops(server, url, places):
    with process(url, places) as worker:
        wait_until(lambda: "ready" in worker.stderr.readline())
        server.stop()
        try:
            begin = time.monotonic()
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=60)
            # Before whoever told it loses patience, 10 s later.
            assert worker.returncode == 0
            assert time.monotonic() - begin < 30
        finally:
            server.start()
