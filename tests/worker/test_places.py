"""Folders of jobs are found, told apart and removed, and nothing else is."""

import os

from attnserve.jobs import ExportOrder
from tests.worker.conftest import everything_in

JOB, OTHER = "6f9b2827-4c01-44df-b218-c16401db6672", "9"
ORDER = ExportOrder(checkpoint="c", files={}, model="m", version=1)


def make(folder, name="file"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def test_no_two_attempts_share_a_folder(places):
    attempts = {places.new_attempt(ORDER, JOB) for _ in range(20)}
    assert len(attempts) == 20
    assert {attempt.parent for attempt in attempts} == {places.version(ORDER).parent}


def test_what_a_job_left_is_found_and_removed(places):
    make(places.work(JOB))
    make(places.new_attempt(ORDER, JOB))
    make(places.new_attempt(ORDER, JOB))
    make(places.new_attempt(ORDER, OTHER))
    assert places.find_jobs() == {JOB, OTHER}
    assert len(places.find_attempts(JOB)) == 2
    places.clear(JOB)
    assert places.find_jobs() == {OTHER}
    assert not places.work(JOB).exists()
    places.clear(OTHER)
    # The folder of a model in which nothing is left goes too.
    assert everything_in(places.repository) == []


def test_what_is_not_of_a_job_stays(places):
    make(places.version(ORDER), "manifest.json")
    # Of an export by hand, which is at work; and what nobody here has made.
    make(places.repository / "m" / f".tmp-{'0' * 32}")
    make(places.repository / "m" / f".tmp-{JOB}")
    make(places.repository / ".attnserve")
    make(places.checkpoints / ".work" / "a.b")
    make(places.checkpoints / "mine")
    before = everything_in(places.repository), everything_in(places.checkpoints)
    assert places.find_jobs() == set()
    for job in (JOB, OTHER):
        places.clear(job)
    assert (everything_in(places.repository), everything_in(places.checkpoints)) == before


def test_links_are_not_followed(places, tmp_path):
    make(tmp_path / "elsewhere" / f".tmp-{JOB}.01234567")
    (places.repository / "m").symlink_to(tmp_path / "elsewhere")
    places.clear(JOB)
    assert (tmp_path / "elsewhere" / f".tmp-{JOB}.01234567" / "file").exists()


def test_the_last_change_is_of_any_folder(places):
    assert places.last_change(JOB) == 0
    attempt = places.new_attempt(ORDER, JOB)
    make(places.work(JOB))
    make(attempt)
    os.utime(places.work(JOB), (1000, 1000))
    os.utime(attempt, (2000, 2000))
    assert places.last_change(JOB) == 2000
