"""Who is alive: by a count that moves, on the watcher's own clock."""

import pytest
import sqlalchemy as sa

from attnserve.worker.leases import Lease, Leases, Watch


@pytest.fixture
def engine(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'leases.sqlite'}")
    yield engine
    engine.dispose()


def lease(name="a", beats=1):
    return Lease(name=name, format=1, beats=beats)


def test_a_count_goes_up_and_a_row_that_is_gone_comes_back(engine):
    mine, other = (Leases(engine, name=name, format=1) for name in ("mine", "other"))
    for leases in (mine, other):
        leases.create()
        leases.renew()
    mine.renew()
    assert {one.name: one.beats for one in mine.read()} == {"mine": 2, "other": 1}
    mine.release()
    assert [one.name for one in other.read()] == ["other"]
    mine.renew()
    assert {one.name: one.beats for one in mine.read()} == {"mine": 1, "other": 1}


def test_a_release_takes_its_format_along(engine):
    old, new = (Leases(engine, name="same", format=format) for format in (1, 2))
    old.create()
    old.renew()
    new.renew()
    assert [(one.name, one.format) for one in new.read()] == [("same", 2)]


def test_a_dead_lease_is_removed_only_as_it_was_seen(engine):
    mine, other = (Leases(engine, name=name, format=1) for name in ("mine", "other"))
    mine.create()
    other.renew()
    (seen,) = mine.read()
    # It was not dead after all.
    other.renew()
    mine.release(seen)
    assert len(mine.read()) == 1
    mine.release(*mine.read())
    assert mine.read() == []


def test_a_lease_that_moves_is_alive():
    watch = Watch(patience_s=30)
    for round in range(100):
        assert watch.look([lease(beats=round)], now=round * 29.0)["a"]


def test_one_that_stands_still_for_longer_is_not():
    watch = Watch(patience_s=30)
    # Whoever looks for the first time knows nothing.
    assert watch.look([lease()], now=1000)["a"]
    assert watch.look([lease()], now=1030)["a"]
    assert not watch.look([lease()], now=1031)["a"]
    assert not watch.look([lease()], now=2000)["a"]
    assert watch.look([lease(beats=2)], now=2001)["a"]


def test_a_count_that_begins_anew_moves_too():
    watch = Watch(patience_s=30)
    watch.look([lease(beats=100)], now=0)
    assert watch.look([lease(beats=1)], now=60)["a"]


def test_a_watcher_that_was_suspended_looks_before_it_judges():
    watch = Watch(patience_s=30)
    watch.look([lease("moves"), lease("stands")], now=0)
    assert watch.look([lease("moves", 9), lease("stands")], now=3600) == {"moves": True, "stands": False}


def test_whoever_was_gone_is_new_when_he_comes_back():
    watch = Watch(patience_s=30)
    watch.look([lease()], now=0)
    assert watch.look([], now=20) == {}
    assert watch.look([lease()], now=40)["a"]
