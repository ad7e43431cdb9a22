"""Where a GPU is sooner: from there on, and not where the clock says so once."""

import pytest

from attnserve.service.crossover import LENGTHS, REPEATS, Crossover, Timed, find_crossover, measure_crossover


def timed(*seconds):
    """By size: on the host and on the device."""
    return [
        Timed(num_weights=10**place, on_host=on_host, on_device=on_device)
        for place, (on_host, on_device) in enumerate(seconds)
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([], None),
        ([(1, 2), (1, 2)], None),
        ([(2, 1), (2, 1)], 1),
        ([(1, 2), (3, 2), (9, 2)], 10),
        ([(1, 2), (1, 2), (9, 2)], 100),
        # What is larger decides.
        ([(1, 2), (3, 2), (2, 3)], None),
        ([(3, 1), (1, 2), (9, 2)], 100),
        # As good as equal.
        ([(1, 2), (2.01, 2), (9, 2)], 100),
        ([(1, 2), (2.01, 2)], None),
    ],
)
def test_the_first_size_from_which_the_device_wins(seconds, expected):
    rows = timed(*seconds)
    assert find_crossover(rows) == find_crossover(rows[::-1]) == Crossover(weights_from=expected)


class World:
    """A clock, and answers that take so long by it."""

    def __init__(self, first_on_device=0.0):
        self.now = 0.0
        self.asked = []
        self.first_on_device = first_on_device

    def ask(self, length, stays):
        # On the host a second for every 1000 weights; on the device a tenth of it, and half a second.
        self.now += 0.5 + length**2 / 10_000 if stays else length**2 / 1000
        if stays and (length, True) not in self.asked:
            self.now += self.first_on_device
        self.asked.append((length, stays))
        return length**2

    def measure(self, *, max_length=10**6, max_seconds=10**9):
        found = measure_crossover(self.ask, max_length, max_seconds=max_seconds, clock=lambda: self.now)
        return found.weights_from


def test_every_length_is_asked_about_both_ways():
    world = World()
    assert world.measure() == 64**2
    assert world.asked == [(length, stays) for length in LENGTHS for stays in (False, True) for _ in range(1 + REPEATS)]


def test_the_first_time_does_not_count():
    assert World(first_on_device=1000.0).measure() == 64**2


def test_no_sequence_is_longer_than_the_model_reads():
    world = World()
    assert world.measure(max_length=40) == 40**2
    assert {length for length, _ in world.asked} == {16, 40}


def test_measuring_ends_in_time_but_not_before_it_has_begun():
    world = World()
    # Of short ones alone.
    assert world.measure(max_seconds=1) is None
    assert {length for length, _ in world.asked} == {16}
