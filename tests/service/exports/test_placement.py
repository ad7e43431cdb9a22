"""Which version a job gets, who is first, and what a request that comes again is answered."""

import dataclasses

import pytest

from attnserve.service.exports.placement import MAX_TRIES, find_placed, place
from attnserve.service.exports.request import ExportRequest
from attnserve.service.problems import Conflict, Invalid
from tests.fake_exports import FILES, job_id, make_order

ASKED = ExportRequest(checkpoint="mine", model="tiny")


def publish(repository, *versions, model="tiny"):
    for version in versions:
        folder = repository / model / str(version)
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()


@pytest.fixture
def put(queue, tmp_path):
    def run(asked=ASKED, number=1, **fields):
        return place(queue, tmp_path, dataclasses.replace(asked, **fields), FILES, job_id=job_id(number), key="ci")

    return run


def test_a_job_has_what_was_asked_for(put):
    job = put(version=3, precision="float16", portable=True, top_k=5, activate=False)
    assert job.id == job_id(1)
    assert job.state == "queued"
    assert job.key == "ci"
    assert job.order == make_order(version=3, precision="float16", portable=True, top_k=5, activate=False)


def test_the_first_version_is_1(put):
    assert put().order.version == 1


def test_the_next_version_comes_after_all_there_are_and_will_be(put, queue, tmp_path):
    # 10 > 9, and what is no bundle does not count.
    publish(tmp_path, 9, 10)
    publish(tmp_path, 50, model="other")
    (tmp_path / "tiny" / "77").mkdir()
    assert put(number=1).order.version == 11
    assert put(number=2).order.version == 12
    queue.put(3, order=make_order(model="other", version=90))
    queue.put(4, order=make_order(version=80), state="failed")
    queue.put(5, order=None)
    assert put(number=6).order.version == 13


def test_a_version_that_exists_is_refused(put, tmp_path):
    publish(tmp_path, 1)
    with pytest.raises(Conflict, match=r"version: expected one that tiny does not have, got 1"):
        put(version=1)
    # Whatever it is.
    (tmp_path / "tiny" / "2").symlink_to("nowhere")
    with pytest.raises(Conflict):
        put(version=2)


def test_a_version_that_a_job_is_under_way_to_is_refused(put, queue):
    put(number=1, version=4)
    with pytest.raises(Conflict, match=f"version: .* got 4: export {job_id(1)}"):
        put(number=2, version=4)
    queue.change(job_id(1), state="failed")
    assert put(number=2, version=4).id == job_id(2)


def test_of_two_replicas_one_gets_the_version_and_the_other_the_next(put, queue):
    queue.before_add = lambda: queue.put(9, order=make_order(version=1))
    assert put().order.version == 2


def test_of_two_replicas_that_want_one_version_one_is_refused(put, queue):
    queue.before_add = lambda: queue.put(9, order=make_order(version=1))
    with pytest.raises(Conflict, match=f"got 1: export {job_id(9)}"):
        put(version=1)


def test_it_gives_up_when_others_are_always_faster(put, queue):
    def hurry():
        number = len(queue.jobs)
        queue.put(100 + number, order=make_order(version=1 + number))
        queue.before_add = hurry

    queue.before_add = hurry
    with pytest.raises(Conflict, match="version: expected one that stays free"):
        put()
    assert len(queue.jobs) == MAX_TRIES


def test_numbers_end(put, tmp_path):
    publish(tmp_path, 999_999_999)
    with pytest.raises(Conflict, match="no number left after 999999999"):
        put()


def test_a_request_that_comes_again_is_the_same_job(put, queue):
    first = put()
    assert find_placed(queue, first.id, ASKED) == first
    # Also where both came at once, and whatever has become of it.
    assert put() == first
    queue.change(first.id, state="failed")
    assert put().state == "failed"
    assert len(queue.jobs) == 1


def test_another_request_with_its_key_is_refused(put, queue):
    first = put()
    for other in (dataclasses.replace(ASKED, precision="float16"), dataclasses.replace(ASKED, version=1)):
        with pytest.raises(Invalid, match=r"Idempotency-Key: expected a new key") as caught:
            find_placed(queue, first.id, other)
        assert [fault.field for fault in caught.value.faults] == ["Idempotency-Key"]


def test_a_key_that_nobody_has_used_has_no_job(queue):
    assert find_placed(queue, job_id(1), ASKED) is None
