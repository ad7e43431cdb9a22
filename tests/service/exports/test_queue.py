"""The queue is DBOS's: what is written is what a DBOS worker takes, and what that worker does is what is read.

The worker is a process of its own that speaks to DBOS as `attnserve worker` does, and does as the model's name says.
"""

import base64
import contextlib
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
from dbos import DBOS

from attnserve.jobs import JOB_FORMAT, LOG, PROGRESS, QUEUE, STATES, WORKFLOW, Outcome
from attnserve.records import to_json
from attnserve.service.exports.job import Place, QueueDown, Taken
from attnserve.service.exports.queue import DBOSQueue
from tests.fake_exports import FILES, LINES, PARITY, job_id, make_order

WORKER = f"""
import json, sys, threading
from dbos import DBOS, DBOSPortableJSONSerializer

url, lines, outcomes = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
DBOS(config=dict(
    name="attnserve", system_database_url=url, application_version="{JOB_FORMAT}", executor_id="worker-1",
    serializer=DBOSPortableJSONSerializer(), console_log_level="WARNING",
))

@DBOS.workflow(name="{WORKFLOW}")
def export(order):
    for line in lines:
        DBOS.set_event("{PROGRESS}", line)
        DBOS.write_stream("{LOG}", line)
    print(order["model"], flush=True)
    if order["model"] == "waits":
        DBOS.sleep(600)
    if order["model"] == "raises":
        raise RuntimeError("no space left")
    return outcomes[order["model"]]

DBOS.listen_queues(["{QUEUE}"])
DBOS.launch()
DBOS.register_queue("{QUEUE}", polling_interval_sec=0.05)
threading.Event().wait()
"""
OUTCOMES = {
    "succeeds": to_json(Outcome(state="succeeded", parity=PARITY)),
    "fails": to_json(Outcome(state="failed", step="load", reason="NaN", report="all of it")),
    "babbles": {"result": "fine"},
}
NUMBERS = {"succeeds": 1, "fails": 2, "babbles": 3, "raises": 4, "waits": 5}


def url_of(path: Path) -> str:
    return f"sqlite:///{urllib.parse.quote(str(path))}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A database without jobs. Not to be written to: copy it."""
    path = tmp_path_factory.mktemp("database") / "jobs.sqlite"
    DBOS.migrate(url_of(path))
    return path


@pytest.fixture
def database(prepared, tmp_path) -> Path:
    return Path(shutil.copy(prepared, tmp_path))


@pytest.fixture
def queue(database):
    opened = DBOSQueue(url_of(database))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def worked_database(prepared, tmp_path_factory) -> Path:
    """A database whose jobs have been through the worker. Not to be written to: copy it."""
    path = Path(shutil.copy(prepared, tmp_path_factory.mktemp("worked")))
    queue = DBOSQueue(url_of(path))
    for model, number in NUMBERS.items():
        queue.add(job_id(number), make_order(model=model), key=None, fingerprint="f")
    arguments = [json.dumps([to_json(line) for line in LINES]), json.dumps(OUTCOMES)]
    command = [sys.executable, "-c", WORKER, url_of(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        begun = {process.stdout.readline().strip() for _ in NUMBERS}
        over = threading.Event()
        while any(not queue.find(job_id(number)).is_over for model, number in NUMBERS.items() if model != "waits"):
            over.wait(0.05)
        process.kill()
    assert begun == set(NUMBERS)
    queue.close()
    return path


@pytest.fixture(scope="module")
def worked(worked_database) -> DBOSQueue:
    opened = DBOSQueue(url_of(worked_database))
    yield opened
    opened.close()


def test_a_job_is_found_as_it_was_added(queue):
    order = make_order(precision="float16", portable=True, top_k=5, activate=False)
    queue.add(job_id(1), order, key="ci", fingerprint="abc")
    found = queue.find(job_id(1))
    assert (found.id, found.state, found.order) == (job_id(1), "queued", order)
    assert (found.key, found.fingerprint) == ("ci", "abc")
    assert found.created_ms > 1_700_000_000_000
    assert found.started_ms is found.ended_ms is found.worker is found.progress is found.outcome is None
    assert queue.find(job_id(2)) is None


def test_without_keys_nobody_asked(queue):
    queue.add(job_id(1), make_order(), key=None, fingerprint="abc")
    assert queue.find(job_id(1)).key is None


def test_one_job_at_a_time_is_under_way_to_a_version(queue):
    queue.add(job_id(1), make_order(version=2), key=None, fingerprint="a")
    with pytest.raises(Taken):
        queue.add(job_id(2), make_order(version=2, checkpoint="other"), key=None, fingerprint="b")
    with pytest.raises(Taken):
        queue.add(job_id(1), make_order(version=2), key=None, fingerprint="a")
    with pytest.raises(Taken):
        queue.add(job_id(1), make_order(version=3), key=None, fingerprint="c")
    queue.add(job_id(3), make_order(version=3), key=None, fingerprint="d")
    queue.add(job_id(4), make_order(version=2, model="other"), key=None, fingerprint="e")
    assert {job.id for job in queue.find_active()} == {job_id(1), job_id(3), job_id(4)}
    queue.cancel(job_id(1))
    queue.add(job_id(5), make_order(version=2), key=None, fingerprint="b")


def test_of_many_replicas_one_gets_a_version(database):
    queues = [DBOSQueue(url_of(database)) for _ in range(4)]
    results = []

    def add(number):
        try:
            queues[number % 4].add(job_id(number), make_order(), key=None, fingerprint="a")
            results.append(number)
        except Taken:
            pass

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = results
    assert [job.id for job in queues[0].find_active()] == [job_id(winner)]
    for each in queues:
        each.close()


def test_a_queued_job_is_cancelled(queue):
    queue.add(job_id(1), make_order(), key=None, fingerprint="a")
    queue.cancel(job_id(1))
    found = queue.find(job_id(1))
    assert (found.state, found.is_over) == ("cancelled", True)
    assert found.ended_ms >= found.created_ms
    assert queue.find_active() == []
    assert queue.read_log(job_id(1), 0).is_over
    # Once more, and of none.
    queue.cancel(job_id(1))
    queue.cancel(job_id(2))


def test_lists_are_newest_first_and_every_job_is_in_one(queue, database):
    for number in range(7):
        queue.add(job_id(number), make_order(version=number + 1), key=None, fingerprint="a")
    # Three of one millisecond.
    with sqlite3.connect(database) as connection:
        for number in range(7):
            values = (1000 + (number + 1) // 3, job_id(number))
            connection.execute("UPDATE workflow_status SET created_at = ? WHERE workflow_uuid = ?", values)
    connection.close()
    expected = [job_id(number) for number in reversed(range(7))]
    assert [job.id for job in queue.list_jobs(STATES, None, 100)] == expected
    for limit in range(1, 8):
        found, after = [], None
        while batch := queue.list_jobs(STATES, after, limit):
            assert len(batch) <= limit
            found += [job.id for job in batch]
            after = Place(created_ms=batch[-1].created_ms, id=batch[-1].id)
        assert found == expected


def test_jobs_of_others_in_the_same_database_are_none_of_ours(queue, database):
    queue.add(job_id(1), make_order(), key=None, fingerprint="a")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE workflow_status SET application_name = 'billing'")
    connection.close()
    assert queue.find(job_id(1)) is None
    assert queue.list_jobs(STATES, None, 100) == []
    assert queue.find_active() == []


def test_an_order_of_another_format_is_a_job_all_the_same(queue, database):
    queue.add(job_id(1), make_order(), key=None, fingerprint="a")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE workflow_input SET inputs = replace(inputs, 'precision', 'quantisation')")
    connection.close()
    found = queue.find(job_id(1))
    assert (found.state, found.order) == ("queued", None)
    assert [job.order for job in queue.list_jobs(STATES, None, 100)] == [None]


def test_what_succeeded_has_its_parity(worked):
    found = worked.find(job_id(NUMBERS["succeeds"]))
    assert found.state == "succeeded"
    assert found.outcome.parity == PARITY
    assert found.worker == "worker-1"
    assert found.created_ms <= found.started_ms <= found.ended_ms


def test_what_failed_says_why(worked):
    found = worked.find(job_id(NUMBERS["fails"]))
    assert found.state == "failed"
    assert (found.outcome.step, found.outcome.reason, found.outcome.report) == ("load", "NaN", "all of it")


@pytest.mark.parametrize(
    ("model", "reason"),
    [("raises", "the worker failed: no space left"), ("babbles", r"cannot be read: .*result.*: unknown field")],
)
def test_a_worker_that_fails_is_a_job_that_failed(worked, model, reason):
    found = worked.find(job_id(NUMBERS[model]))
    assert found.state == "failed"
    assert found.is_over
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.outcome.reason)


def test_a_job_that_runs_says_where_it_is(worked):
    found = worked.find(job_id(NUMBERS["waits"]))
    assert (found.state, found.worker, found.progress) == ("running", "worker-1", LINES[-1])
    assert found.outcome is found.ended_ms is None
    assert [job.id for job in worked.find_active()] == [found.id]


@pytest.mark.parametrize(("model", "is_over"), [("succeeds", True), ("raises", True), ("waits", False)])
@pytest.mark.parametrize("start", [0, 1, 3, 50])
def test_all_that_was_said_is_read(worked, model, is_over, start):
    found = worked.read_log(job_id(NUMBERS[model]), start)
    assert found.lines == LINES[start:]
    assert found.is_over == is_over


def test_a_job_that_is_gone_says_nothing_more(worked):
    found = worked.read_log(job_id(99), 0)
    assert (found.lines, found.is_over) == ((), True)


@pytest.mark.parametrize(
    ("state", "models"),
    [
        ("queued", set()),
        ("running", {"waits"}),
        ("succeeded", {"succeeds", "fails", "babbles"}),
        ("failed", {"succeeds", "fails", "babbles", "raises"}),
        ("cancelled", set()),
    ],
)
def test_lists_leave_out_what_the_state_tells(worked, state, models):
    assert {job.order.model for job in worked.list_jobs({state}, None, 100)} == models


@pytest.mark.parametrize("is_there", [False, True], ids=["nothing", "an empty file"])
def test_nobody_has_to_prepare_a_file(tmp_path, is_there):
    path = tmp_path / "state" / "jobs.sqlite"
    if is_there:
        path.parent.mkdir()
        path.touch()
    queue = DBOSQueue(url_of(path))
    assert not path.exists() or is_there
    assert queue.find_active() == queue.list_jobs(STATES, None, 1) == []
    queue.add(job_id(1), make_order(), key=None, fingerprint="a")
    assert [job.id for job in queue.find_active()] == [job_id(1)]
    queue.close()


def test_a_database_that_cannot_be_made_is_down(tmp_path, caplog):
    (tmp_path / "state").touch()
    queue = DBOSQueue(url_of(tmp_path / "state" / "jobs.sqlite"))
    with pytest.raises(QueueDown, match=r"^the database of export jobs cannot be made$"):
        queue.add(job_id(1), make_order(), key=None, fingerprint="a")
    assert "File exists" in caplog.text
    queue.close()


def test_many_who_ask_first_at_once_make_it_together(tmp_path):
    path = tmp_path / "state" / "jobs.sqlite"
    queues = [DBOSQueue(url_of(path)) for _ in range(4)]

    def add(number):
        queues[number].add(job_id(number), make_order(version=number + 1), key=None, fingerprint="a")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {job.id for job in queues[0].find_active()} == {job_id(number) for number in range(4)}
    for each in queues:
        each.close()


def test_what_is_no_database_is_said_once_in_the_log(tmp_path, caplog):
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(os.urandom(5000))
    queue = DBOSQueue(url_of(path))
    for _ in range(3):
        with pytest.raises(QueueDown, match=r"^the database of export jobs does not answer$"):
            queue.find_active()
    assert caplog.text.count("file is not a database") == 1
    queue.close()


def test_a_server_that_is_not_there_is_down_and_its_password_is_not_shown(caplog):
    # Nobody listens on port 1, and no name is asked for.
    queue = DBOSQueue("postgresql://me:secret@127.0.0.1:1/jobs")
    with pytest.raises(QueueDown, match=r"^the database of export jobs does not answer$"):
        queue.add(job_id(1), make_order(), key=None, fingerprint="a")
    assert "127.0.0.1" in caplog.text
    assert "secret" not in caplog.text
    queue.close()


def test_odd_names_of_files_are_names(prepared, tmp_path):
    path = tmp_path / "a b%20c?d#e&mode=memory"
    shutil.copy(prepared, path)
    queue = DBOSQueue(url_of(path))
    queue.add(job_id(1), make_order(files=FILES), key=None, fingerprint="a")
    queue.close()
    again = DBOSQueue(url_of(path))
    assert again.find(job_id(1)) is not None
    again.close()


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("table", ["workflow_input", "workflow_output", "streams", "workflow_events"])
def test_a_pickle_in_the_database_is_never_loaded(worked_database, tmp_path, table):
    database = Path(shutil.copy(worked_database, tmp_path))
    trace = tmp_path / "trace"
    pickled = base64.b64encode(pickle.dumps({"args": (Payload(trace),), "kwargs": {}})).decode()
    column = {"workflow_input": "inputs", "workflow_output": "output"}.get(table, "value")
    with sqlite3.connect(database) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (pickled,))
        for tagged in ("workflow_status", "streams", "workflow_events"):
            connection.execute(f"UPDATE {tagged} SET serialization = 'py_pickle'")
    connection.close()
    queue = DBOSQueue(url_of(database))
    for number in NUMBERS.values():
        # Some of it can be done without what is broken.
        with contextlib.suppress(QueueDown):
            queue.find(job_id(number))
        with contextlib.suppress(QueueDown):
            queue.read_log(job_id(number), 0)
    with contextlib.suppress(QueueDown):
        queue.list_jobs(STATES, None, 100)
    queue.close()
    assert not trace.exists()


def test_nothing_that_is_written_has_to_be_unpickled(queue, database):
    queue.add(job_id(1), make_order(), key="ci", fingerprint="a")
    with sqlite3.connect(database) as connection:
        ((serialization,),) = connection.execute("SELECT serialization FROM workflow_status").fetchall()
        ((inputs,),) = connection.execute("SELECT inputs FROM workflow_input").fetchall()
    connection.close()
    assert serialization == "portable_json"
    assert json.loads(inputs)["positionalArgs"] == [to_json(make_order())]
