"""What has ended is swept, what goes on is not."""

import os

import pytest

from attnserve.jobs import ExportOrder
from attnserve.publish import ABANDONED_SECONDS
from attnserve.worker.sweep import EMPTY_SECONDS, sweep
from tests.worker.conftest import everything_in

ORDER = ExportOrder(checkpoint="c", files={}, model="m", version=1)
NOW = 10_000_000.0


@pytest.fixture
def left(places):
    """Work and a bundle that is not published, of one job, written to just now."""
    attempt = places.new_attempt(ORDER, "job")
    attempt.mkdir(parents=True)
    places.work("job").mkdir(parents=True)
    for folder in (attempt, places.work("job")):
        os.utime(folder, (NOW, NOW))
    return everything_in(places.repository.parent)


@pytest.mark.parametrize("state", ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_a_job_that_has_ended_is_swept(places, left, state):
    assert sweep(places, lambda jobs: dict.fromkeys(jobs, state), now=NOW) == ("job",)
    assert everything_in(places.repository) == []
    assert not places.work("job").exists()


@pytest.mark.parametrize("state", ["PENDING", "ENQUEUED", "DELAYED"])
def test_a_job_that_goes_on_is_not(places, left, state):
    assert sweep(places, lambda jobs: dict.fromkeys(jobs, state), now=NOW + 10 * ABANDONED_SECONDS) == ()
    assert everything_in(places.repository.parent) == left


def test_a_job_that_nobody_knows_has_a_day(places, left):
    # Another database's, perhaps.
    assert sweep(places, lambda jobs: {}, now=NOW + ABANDONED_SECONDS) == ()
    assert everything_in(places.repository.parent) == left
    assert sweep(places, lambda jobs: {}, now=NOW + ABANDONED_SECONDS + 1) == ("job",)


def test_nobody_is_asked_about_nothing(places):
    assert sweep(places, lambda jobs: pytest.fail("asked"), now=NOW) == ()


def test_folders_of_models_that_never_were_go_after_a_while(places):
    for name in ("empty", "full", ".empty"):
        (places.repository / name).mkdir()
    (places.repository / "full" / "aliases.json").touch()
    for folder in places.repository.iterdir():
        os.utime(folder, (NOW, NOW))
    sweep(places, lambda jobs: {}, now=NOW + EMPTY_SECONDS)
    assert len(list(places.repository.iterdir())) == 3
    sweep(places, lambda jobs: {}, now=NOW + EMPTY_SECONDS + 1)
    assert {folder.name for folder in places.repository.iterdir()} == {"full", ".empty"}
