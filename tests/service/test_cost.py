"""The cost of a batch, who shares one, and how the coefficients are found."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.cost import Cost, Shape, estimate_bytes, measure_cost, take_batch

COST = Cost(seconds_per_run=1e-4, seconds_per_row=2e-6, seconds_per_cell=1e-8, bytes_per_row=1000, bytes_per_cell=50)

numbers = st.floats(0, 1e-3)
costs = st.builds(
    Cost,
    seconds_per_run=numbers,
    seconds_per_row=numbers,
    seconds_per_cell=numbers,
    bytes_per_row=st.floats(1, 1e4),
    bytes_per_cell=st.floats(0, 100),
    pads=st.booleans(),
    seconds_per_far_row=numbers,
)
queues = st.lists(st.integers(1, 2000), min_size=1, max_size=40)


def shape_of(lengths) -> Shape:
    shape = Shape()
    for length in lengths:
        shape = shape.add(length)
    return shape


def alone(cost: Cost, lengths) -> float:
    return sum(cost.seconds(shape_of([length])) for length in lengths)


def test_a_shape_is_what_packing_makes_of_it():
    shape = shape_of([3, 7, 2])
    assert shape == Shape(num_rows=12, num_sequences=3, num_steps=7, num_own_cells=9 + 49 + 4)
    assert shape.num_padded_cells == 3 * 49
    assert COST.seconds(shape) == pytest.approx(1e-4 + 12 * 2e-6 + 147e-8)
    assert COST.bytes(shape) == 12 * 1000 + 147 * 50


def test_kernels_compute_no_padding():
    cost = dataclasses.replace(COST, pads=False)
    assert cost.seconds(shape_of([3, 7, 2])) == pytest.approx(1e-4 + 12 * 2e-6 + 62e-8)
    assert cost.bytes(shape_of([3, 7, 2])) == 12 * 1000 + 62 * 50
    # So a long one and its short neighbours share a run.
    assert take_batch([8] * 7 + [1024] + [8] * 8, cost) == list(range(16))
    assert take_batch([8] * 7 + [1024] + [8] * 8, COST) == [place for place in range(16) if place != 7]


@settings(deadline=None, derandomize=True)
@given(lengths=queues, cost=costs, max_bytes=st.floats(1, 1e7), max_seconds=st.floats(1e-5, 10))
def test_a_batch_is_no_dearer_than_its_members_and_fits(lengths, cost, max_bytes, max_seconds):
    places = take_batch(iter(lengths), cost, max_bytes=max_bytes, max_seconds=max_seconds)
    assert places[0] == 0
    assert places == sorted(set(places))
    chosen = [lengths[place] for place in places]
    if len(chosen) > 1:
        assert cost.seconds(shape_of(chosen)) <= alone(cost, chosen) * (1 + 1e-12)
        assert cost.bytes(shape_of(chosen)) <= max_bytes
        assert cost.seconds(shape_of(chosen)) <= max_seconds


@settings(deadline=None, derandomize=True)
@given(lengths=queues, cost=costs, max_bytes=st.floats(1, 1e7))
def test_nobody_starves(lengths, cost, max_bytes):
    waiting, order = list(enumerate(lengths)), []
    while waiting:
        places = take_batch([length for _, length in waiting], cost, max_bytes=max_bytes)
        order += [waiting[place] for place in places]
        left = [one for place, one in enumerate(waiting) if place not in places]
        # Each batch takes the one who has waited longest, so nobody is overtaken more often than there are others.
        assert waiting[0] in order
        waiting = left
    assert sorted(order) == list(enumerate(lengths))


def test_equals_run_together():
    assert take_batch([64] * 50, COST) == list(range(50))


@pytest.mark.parametrize("place", [0, 7, 15])
def test_one_long_sequence_runs_apart_from_fifteen_short_ones(place):
    lengths = [8] * 15
    lengths.insert(place, 1024)
    first = take_batch(lengths, COST)
    if place == 0:
        assert first == [0]
    else:
        assert first == [index for index in range(16) if index != place]


def test_those_behind_one_who_does_not_fit_may_still_join():
    assert take_batch([8, 1024, 8, 9, 1024], COST) == [0, 2, 3]


def test_memory_is_a_limit():
    per_sequence = COST.bytes(shape_of([10]))
    assert take_batch([10] * 9, COST, max_bytes=4 * per_sequence) == [0, 1, 2, 3]
    assert take_batch([10] * 9, COST, max_bytes=4 * per_sequence - 1) == [0, 1, 2]
    # The first is taken whatever it needs: who fits nowhere is refused at the door, not here.
    assert take_batch([10] * 9, COST, max_bytes=1) == [0]


def test_time_is_a_limit():
    three = COST.seconds(shape_of([10] * 3))
    assert take_batch([10] * 9, COST, max_seconds=three) == [0, 1, 2]
    assert take_batch([10] * 9, COST, max_seconds=three * 0.99) == [0, 1]
    assert take_batch([10] * 9, COST, max_seconds=1e-9) == [0]


def test_nobody_waiting_is_nobody_taken():
    assert take_batch([], COST) == []


@given(max_bytes=st.floats(0, 1e9), cost=costs)
@settings(deadline=None, derandomize=True)
def test_the_longest_sequence_that_fits(max_bytes, cost):
    longest = cost.longest_within(max_bytes)
    assert longest == 0 or cost.bytes(shape_of([longest])) <= max_bytes
    assert cost.bytes(shape_of([longest + 1])) > max_bytes


class Machine:
    """Takes exactly as long as a cost model says, and has the only clock."""

    def __init__(self, cost: Cost, noise=lambda: 1.0):
        self.cost, self.noise = cost, noise
        self.now = 0.0
        self.batches = []

    def run(self, lengths):
        self.batches.append(list(lengths))
        self.now += self.cost.seconds(shape_of(lengths)) * self.noise()

    def clock(self):
        return self.now


PLANTED = dataclasses.replace(COST, seconds_per_cell=2e-7)


def test_planted_coefficients_are_found(make_manifest):
    machine = Machine(PLANTED)
    cost = measure_cost(make_manifest(max_length=4096), machine.run, max_seconds=1e6, clock=machine.clock)
    for name in ("seconds_per_run", "seconds_per_row", "seconds_per_cell"):
        assert getattr(cost, name) == pytest.approx(getattr(PLANTED, name), rel=1e-6), name


def test_rows_that_cost_more_where_they_are_many_are_found(make_manifest):
    planted = dataclasses.replace(PLANTED, pads=False, seconds_per_far_row=1e-6)
    machine = Machine(planted)
    cost = measure_cost(make_manifest(max_length=4096), machine.run, max_seconds=1e6, clock=machine.clock, pads=False)
    for name in ("seconds_per_run", "seconds_per_row", "seconds_per_far_row", "seconds_per_cell"):
        assert getattr(cost, name) == pytest.approx(getattr(planted, name), rel=1e-6), name


def test_without_padding_a_batch_ends_where_more_rows_would_cost_more():
    cost = dataclasses.replace(COST, pads=False, seconds_per_far_row=1e-6)
    # A run saved is 100 far rows.
    assert len(take_batch([512] * 9, cost)) == 2
    assert len(take_batch([256] * 99, cost)) == 5
    assert len(take_batch([64] * 99, cost)) == 99
    assert len(take_batch([512] * 9, dataclasses.replace(cost, seconds_per_far_row=0.0))) == 9


def test_planted_coefficients_of_kernels_are_found(make_manifest):
    machine = Machine(dataclasses.replace(PLANTED, pads=False))
    cost = measure_cost(make_manifest(max_length=4096), machine.run, max_seconds=1e6, clock=machine.clock, pads=False)
    assert cost.seconds_per_cell == pytest.approx(PLANTED.seconds_per_cell, rel=1e-6)
    assert (cost.pads, cost.bytes_per_cell) == (False, 0)
    assert cost.longest_within(1e9) == pytest.approx(1e9 / cost.bytes_per_row, rel=1e-3)


def test_a_disturbed_machine_is_measured_by_its_best(make_manifest):
    random = np.random.default_rng(0)
    machine = Machine(PLANTED, noise=lambda: 1 + 5 * (random.random() < 0.3))
    cost = measure_cost(make_manifest(max_length=4096), machine.run, max_seconds=1e6, clock=machine.clock)
    for name in ("seconds_per_run", "seconds_per_row", "seconds_per_cell"):
        assert getattr(cost, name) == pytest.approx(getattr(PLANTED, name), rel=0.01), name


def test_nothing_longer_than_the_model_allows_is_run(make_manifest):
    machine = Machine(COST)
    measure_cost(make_manifest(max_length=24), machine.run, max_seconds=1e6, clock=machine.clock)
    assert max(map(max, machine.batches)) == 24


def test_measuring_ends_in_time(make_manifest):
    machine = Machine(dataclasses.replace(COST, seconds_per_run=3.0))
    cost = measure_cost(make_manifest(), machine.run, max_seconds=10, clock=machine.clock)
    # One that had begun may end: a first run and its repetition.
    assert machine.now <= 10 + 2 * 3.1
    assert cost.seconds(shape_of([1])) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("free", ["seconds_per_run", "seconds_per_row"])
def test_what_costs_nothing_is_never_less_than_nothing(make_manifest, free):
    random = np.random.default_rng(0)
    machine = Machine(dataclasses.replace(PLANTED, **{free: 0.0}), noise=lambda: random.uniform(0.9, 1.1))
    cost = measure_cost(make_manifest(max_length=4096), machine.run, max_seconds=1e6, clock=machine.clock)
    assert all(value >= 0 for value in vars(cost).values())


def test_memory_grows_with_everything_that_is_held(make_manifest):
    per_row, per_cell = estimate_bytes(make_manifest())
    assert per_row > 4 * (4 * 32 + 10)
    assert per_cell >= 4 * 3 * 4
    # Logits of every row may be asked for: of a large vocabulary they outweigh everything else.
    assert estimate_bytes(make_manifest(vocabulary_size=50_000))[0] >= per_row + 4 * 49_990
    # So do long feature vectors, and a stream wider than its heads.
    vectors = make_manifest(vocabulary_size=None, num_features=50_000, task="classify_token", num_classes=10)
    assert estimate_bytes(vectors)[0] >= per_row + 4 * 50_000
    outputs = (dataclasses.replace(tensor, shape=("C", "4096")) for tensor in make_manifest().outputs)
    assert estimate_bytes(make_manifest(outputs=tuple(outputs)))[0] >= 100 * per_row
