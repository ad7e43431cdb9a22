"""Silence: runs are waited for, loads are not, and nobody comes in meanwhile."""

import threading

import pytest

from attnserve.traffic import Traffic

SECONDS = 60


class Thread:
    """Does `work` in another thread; tells when it has begun, and what it saw."""

    def __init__(self, traffic, name):
        self.seen = []
        self.entered, self.leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(getattr(traffic, name),))
        self._thread.start()

    def _work(self, enter):
        with enter() as found:
            self.seen.append(found)
            self.entered.set()
            assert self.leave.wait(SECONDS)

    def end(self):
        self.leave.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def traffic():
    return Traffic()


def test_runs_and_loads_do_not_wait_for_each_other(traffic):
    with traffic.run(), traffic.run(), traffic.load(), traffic.load(), traffic.run():
        pass
    with traffic.silence() as is_silent:
        assert is_silent


def test_silence_waits_for_runs_and_those_who_come_later_wait_for_it(traffic):
    run = Thread(traffic, "run")
    assert run.entered.wait(SECONDS)
    silence = Thread(traffic, "silence")
    while not traffic._num_listening:
        pass
    later = Thread(traffic, "run")
    assert not silence.entered.is_set()
    assert not later.entered.is_set()
    run.end()
    assert silence.entered.wait(SECONDS)
    assert not later.entered.is_set()
    silence.end()
    assert later.entered.wait(SECONDS)
    later.end()
    assert silence.seen == [True]


def test_a_load_waits_for_silence_to_end(traffic):
    with traffic.silence() as is_silent:
        assert is_silent
        load = Thread(traffic, "load")
        assert not load.entered.is_set()
    assert load.entered.wait(SECONDS)
    load.end()


def test_there_is_no_silence_while_something_is_loaded(traffic):
    with traffic.load(), traffic.silence() as is_silent:
        assert not is_silent
        # Nor does anybody wait for what is none.
        with traffic.run():
            pass


def test_who_waits_for_silence_gives_it_up_for_a_load(traffic):
    run = Thread(traffic, "run")
    assert run.entered.wait(SECONDS)
    silence = Thread(traffic, "silence")
    while not traffic._num_listening:
        pass
    load = Thread(traffic, "load")
    assert load.entered.wait(SECONDS)
    assert silence.entered.wait(SECONDS)
    for thread in (silence, load, run):
        thread.end()
    assert silence.seen == [False]


def test_one_silence_at_a_time(traffic):
    first = Thread(traffic, "silence")
    assert first.entered.wait(SECONDS)
    second = Thread(traffic, "silence")
    while not traffic._num_listening:
        pass
    assert not second.entered.is_set()
    first.end()
    assert second.entered.wait(SECONDS)
    second.end()
    assert first.seen == second.seen == [True]


def test_an_error_ends_it(traffic):
    for enter in (traffic.run, traffic.load, traffic.silence):
        with pytest.raises(ValueError, match="of the work"), enter():
            raise ValueError("of the work")
    with traffic.silence() as is_silent:
        assert is_silent
