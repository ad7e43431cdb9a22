"""The queue in PostgreSQL, which several replicas share and which may go away for a while."""

import threading

import pytest
from dbos import DBOS

import tests.soak.conftest  # noqa: F401 - makes soak importable
from attnserve.jobs import STATES
from attnserve.service.exports.job import Place, QueueDown, Taken
from attnserve.service.exports.queue import DBOSQueue
from soak.postgres import find_binaries, serving_postgres
from tests.fake_exports import job_id, make_order

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def server():
    with serving_postgres() as server:
        yield server


@pytest.fixture
def queue(server):
    opened = DBOSQueue(server.url)
    yield opened
    opened.close()


def test_tables_are_a_workers_to_make(queue, server):
    with pytest.raises(QueueDown, match=r"^nobody has prepared the database of export jobs yet$"):
        queue.find_active()
    DBOS.migrate(server.url)
    assert queue.find_active() == []


def test_jobs_are_found_listed_and_cancelled(queue):
    orders = [make_order(version=number + 1) for number in range(7)]
    for number, order in enumerate(orders):
        queue.add(job_id(number), order, key="ci", fingerprint="abc")
    found = queue.find(job_id(2))
    assert (found.state, found.order, found.key, found.fingerprint) == ("queued", orders[2], "ci", "abc")
    expected = [job_id(number) for number in reversed(range(7))]
    assert [job.id for job in queue.list_jobs(STATES, None, 100)] == expected
    third = queue.find(expected[2])
    after = Place(created_ms=third.created_ms, id=third.id)
    assert [job.id for job in queue.list_jobs(STATES, after, 2)] == expected[3:5]
    queue.cancel(job_id(3))
    assert [job.id for job in queue.list_jobs({"cancelled"}, None, 100)] == [job_id(3)]
    assert queue.read_log(job_id(3), 0).is_over
    assert not queue.read_log(job_id(4), 0).is_over


def test_of_many_replicas_one_gets_a_version(queue, server):
    queues = [DBOSQueue(server.url) for _ in range(4)]
    winners = []

    def add(number):
        try:
            queues[number % 4].add(job_id(100 + number), make_order(model="raced"), key=None, fingerprint="a")
            winners.append(job_id(100 + number))
        except Taken:
            pass

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in queues:
        each.close()
    assert [job.id for job in queue.find_active() if job.order.model == "raced"] == winners
    assert len(winners) == 1


def test_a_server_that_was_away_is_asked_again(queue, server, caplog):
    with caplog.at_level("INFO"):
        assert queue.find(job_id(0)) is not None
        server.stop()
        for _ in range(2):
            with pytest.raises(QueueDown, match=r"^the database of export jobs does not answer$"):
                queue.find(job_id(0))
        server.start()
        assert queue.find(job_id(0)) is not None
    lines = [record.message for record in caplog.records if "export jobs" in record.message]
    assert len(lines) == 2
    assert lines[1] == "the database of export jobs answers again"
