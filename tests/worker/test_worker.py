"""Workers that die, stop, are suspended and are replaced: every job ends once, and nothing half made is ever seen."""

import base64
import contextlib
import pickle
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.worker.conftest import everything_in, process, running, versions_in, wait_until

ACTIVATE = ("before activate_version", "after activate_version")
STEPS = ("fetch", "_build", "publish_bundle", "activate_version")
CRASHES = [
    pytest.param(f"{when} {step}", marks=() if f"{when} {step}" == "after publish_bundle" else pytest.mark.slow)
    for step in STEPS
    for when in ("before", "after")
]


def waits_once(folder: Path) -> str:
    """What a build does that hangs, but only the first time."""
    return (
        f"seen = {str(folder / 'seen')!r}\n"
        "if not os.path.exists(seen):\n"
        "    open(seen, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )


def read_process(folder: Path) -> int:
    """The process that hangs."""
    wait_until(lambda: (folder / "seen").exists() and (folder / "seen").read_text(), "a process that hangs")
    return int((folder / "seen").read_text())


def suspend(worker, database: Path) -> None:
    """Stop a process, but not while it reads or writes the database: SQLite would be stopped for all."""
    while True:
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: set(read_states(worker.pid)) == {"T"})
        with contextlib.closing(sqlite3.connect(database, timeout=0)) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
                return
            except sqlite3.OperationalError:
                worker.send_signal(signal.SIGCONT)
        # Time to be done with it, or it would be stopped where it was.
        time.sleep(0.05)


def read_states(process: int) -> list[str]:
    """Of all its threads: what is in the middle of a system call stops after it."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def check_published_once(jobs, places, job: str) -> None:
    assert jobs.outcome(job)["state"] == "succeeded"
    assert versions_in(places.repository) == ["m/1"]
    assert places.find_jobs() == set()


@pytest.mark.parametrize("crash", CRASHES)
def test_a_job_goes_on_wherever_its_worker_was_killed(url, places, jobs, crash):
    job = jobs.add()
    with process(url, places, crash=crash) as worker:
        assert worker.wait() == -signal.SIGKILL
    assert jobs.status(job).status == "PENDING"
    # Nobody sees a bundle that is not whole.
    assert versions_in(places.repository) == (["m/1"] if crash in ("after publish_bundle", *ACTIVATE) else [])
    with running(url, places):
        check_published_once(jobs, places, job)
    # What had been done was not done again.
    steps = jobs.steps(job)
    assert steps.count("fetch") == (2 if "fetch" in crash else 1)
    assert steps.count("load") == (2 if crash == "after _build" else 1)


def test_the_jobs_of_a_dead_worker_go_to_another(url, places, jobs, tmp_path):
    job = jobs.add(waits_once(tmp_path))
    with process(url, places, name="first") as worker:
        child = read_process(tmp_path)
        worker.kill()
        worker.wait()
        # It dies with its worker.
        wait_until(lambda: not is_alive(child))
    assert jobs.status(job).executor_id == "first"
    with running(url, places, name="second"):
        check_published_once(jobs, places, job)
    assert jobs.status(job).executor_id == "second"


def test_a_worker_that_is_told_to_stop_gives_its_job_back(url, places, jobs, tmp_path):
    job = jobs.add(waits_once(tmp_path))
    with process(url, places, name="first") as worker:
        child = read_process(tmp_path)
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "worker first: stopped" in log
    assert "Traceback" not in log
    assert not is_alive(child)
    assert jobs.status(job).status == "PENDING"
    # It says that it is gone: nobody waits for its lease to run out.
    with running(url, places, name="second"):
        check_published_once(jobs, places, job)


@pytest.mark.slow
def test_a_worker_that_was_only_suspended_lets_go_of_what_others_have_done(url, places, jobs, tmp_path):
    job = jobs.add(waits_once(tmp_path))
    with process(url, places, name="first") as suspended:
        child = read_process(tmp_path)
        suspend(suspended, tmp_path / "jobs.sqlite")
        with running(url, places, name="second"):
            check_published_once(jobs, places, job)
        # It still builds. Its folder is gone, and what it says of its bundle is nobody's concern any more.
        assert is_alive(child)
        suspended.send_signal(signal.SIGCONT)
        wait_until(lambda: not is_alive(child))
        # And it is a worker again.
        again = jobs.add(version=2)
        assert jobs.outcome(again)["state"] == "succeeded"
        assert jobs.status(again).executor_id == "first"
        suspended.send_signal(signal.SIGTERM)
        _, log = suspended.communicate(timeout=60)
    assert "Traceback" not in log
    assert jobs.status(job).executor_id == "second"


@pytest.mark.slow
def test_a_job_that_an_older_release_has_left_fails_by_name(url, places, jobs, tmp_path):
    waiting, begun = jobs.add(model="waiting", format=0), jobs.add(waits_once(tmp_path), model="begun", format=0)
    with process(url, places, name="old", format=0) as old:
        assert jobs.outcome(waiting)["state"] == "succeeded"
        read_process(tmp_path)
        with running(url, places, name="new"):
            # While the older one lives, its jobs are its own.
            assert jobs.outcome(jobs.add(model="newer"))["state"] == "succeeded"
            assert jobs.status(begun).executor_id == "old"
            old.kill()
            outcome = jobs.outcome(begun)
            third = jobs.outcome(jobs.add(model="third", format=0))
    expected = "format: this release runs jobs of format 1, got 0; ask for it again"
    assert (outcome["state"], outcome["reason"]) == ("failed", expected)
    assert (third["state"], third["reason"]) == ("failed", expected)
    assert jobs.status(begun).executor_id == "new"
    assert not (places.repository / "begun").exists()


def test_a_job_that_is_a_pickle_is_never_loaded(url, places, jobs, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    job = jobs.add()
    pickled = base64.b64encode(pickle.dumps({"args": (Payload(),), "kwargs": {}})).decode()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as connection:
        connection.execute("UPDATE workflow_input SET inputs = ?", (pickled,))
        connection.execute("UPDATE workflow_status SET serialization = 'py_pickle'")
    connection.close()
    with running(url, places):
        assert jobs.outcome(jobs.add(version=2))["state"] == "succeeded"
        wait_until(lambda: jobs.status(job).status != "ENQUEUED", "a worker that has seen the other one")
    assert not (tmp_path / "trace").exists()


def test_the_jobs_of_a_newer_release_are_left_to_it(url, places, jobs):
    newer = jobs.add(model="newer", format=2)
    with running(url, places):
        assert jobs.outcome(jobs.add())["state"] == "succeeded"
        assert jobs.status(newer).status == "ENQUEUED"


@pytest.mark.slow
def test_what_killed_workers_left_is_swept(url, places, jobs):
    job = jobs.add()
    with process(url, places, crash="after _build") as worker:
        worker.wait()
    assert places.find_jobs() == {job}
    # Cancelled while nobody was there to see it.
    jobs.client.cancel_workflow(job)
    with running(url, places):
        wait_until(lambda: not places.find_jobs(), "an end without anything left")
    assert everything_in(places.repository) == []


def test_the_alive_file_is_touched_while_the_database_answers(url, places, tmp_path, monkeypatch):
    alive, asked = tmp_path / "alive", []

    def renew():
        asked.append(None)
        raise sa.exc.OperationalError("UPDATE", None, OSError("gone"))

    with running(url, places, alive_file=alive) as worker:
        wait_until(alive.exists, "a first round")
        with monkeypatch.context() as patch:
            patch.setattr(worker._leases, "renew", renew)
            # The round that was under way may still have touched it.
            wait_until(lambda: asked, "a round without a database")
            alive.unlink()
            wait_until(lambda: len(asked) > 2, "two more")
            assert not alive.exists()
        wait_until(alive.exists, "a round with the database back")


def test_one_name_is_one_workers(url, places):
    with process(url, places, name="same") as first:
        wait_until(lambda: (places.checkpoints / ".workers/same").exists())
        # The lock is there a moment after the file.
        wait_until(lambda: "ready" in first.stderr.readline())
        with process(url, places, name="same") as second:
            _, log = second.communicate(timeout=60)
    assert second.returncode == 1
    assert log == (
        "attnserve: --name (ATTNSERVE_NAME): expected a name that no other worker has, got 'same', which runs already\n"
    )
