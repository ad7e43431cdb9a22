"""A short run of what kills workers, with real exports: `make soak` has the long one."""

import pytest

from soak import damage, kills, workers
from soak.postgres import find_binaries

pytestmark = [pytest.mark.slow, pytest.mark.export]

NUM_KILLS = 3
NUM_CHECKPOINTS = 6


def test_a_worker_that_is_killed_at_random_moments(tmp_path):
    report = kills.run(tmp_path, tmp_path, NUM_KILLS / kills.NUM_KILLS)
    assert report.broken == []
    assert report.figures["published"] == NUM_KILLS + 1


@pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed")
def test_one_of_two_workers_that_is_killed(tmp_path):
    assert workers.run(tmp_path, tmp_path, 0.2).broken == []


def test_checkpoints_that_are_damaged(tmp_path):
    assert damage.run(tmp_path, tmp_path, NUM_CHECKPOINTS / damage.NUM_CHECKPOINTS).broken == []
