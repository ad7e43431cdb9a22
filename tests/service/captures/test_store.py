"""The store: who finds what, until when, and who goes when there is no room."""

import asyncio

import numpy as np
import pytest

from attnserve.service.captures.identity import CaptureId
from attnserve.service.captures.store import CaptureStore
from attnserve.service.problems import Conflict, Gone, NotFound, TooLarge
from tests.captures import make_capture

ANNE, BOB = b"a" * 32, b"b" * 32


class Clock:
    def __init__(self):
        self.now = 100.25

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return CaptureStore(10_000_000, clock)


def name_of(number):
    return f"{number:016d}"


def test_what_was_added_is_found(store):
    capture = make_capture(owner=ANNE)
    store.add(capture)
    assert store.find(str(capture.id), ANNE) is capture
    assert (len(store), store.num_taken, store.num_bytes) == (1, 1, capture.num_bytes)


@pytest.mark.parametrize("owner", [BOB, None])
def test_others_are_told_that_there_is_none(store, owner):
    capture = make_capture(owner=ANNE)
    store.add(capture)
    with pytest.raises(NotFound) as hidden:
        store.find(str(capture.id), owner)
    with pytest.raises(NotFound):
        store.remove(str(capture.id), owner)
    with pytest.raises(NotFound) as unknown:
        store.find("a" * 33, owner)
    assert hidden.value.faults[0].message.partition(", got")[0] == unknown.value.faults[0].message.partition(", got")[0]
    assert len(store) == 1


def test_it_ends(store, clock):
    capture = make_capture(expires=110)
    store.add(capture)
    assert store.seconds_left(capture) == 9
    clock.now = 109.9
    assert store.find(str(capture.id), None) is capture
    clock.now = 110.0
    with pytest.raises(Gone, match="ended at 1970-01-01T00:01:50Z; capture again"):
        store.find(str(capture.id), None)
    assert (len(store), store.num_bytes) == (0, 0)
    assert store.lost == {"expired": 1}
    assert store.seconds_left(capture) == 0


def test_what_nobody_asks_for_goes_too(store, clock):
    for number in range(3):
        store.add(make_capture(name_of(number), expires=110 + number))
    clock.now = 111.0
    store.sweep()
    assert len(store) == 1
    store.sweep()
    assert store.lost == {"expired": 2}


def test_one_that_is_gone_was_one(store):
    capture = make_capture(expires=1000)
    # Of another replica, or evicted.
    with pytest.raises(Gone, match="no longer here"):
        store.find(str(capture.id), None)
    store.add(capture)
    store.remove(str(capture.id), None)
    with pytest.raises(Gone, match="no longer here"):
        store.find(str(capture.id), None)
    with pytest.raises(Gone):
        store.remove(str(capture.id), None)
    assert store.lost == {"deleted": 1}


@pytest.mark.parametrize("text", ["", "nope", "a" * 32, "a" * 16 + "." + "b" * 16, "a" * 100_000])
def test_what_never_was_is_not_found(store, text):
    with pytest.raises(NotFound) as caught:
        store.find(text, None)
    (fault,) = caught.value.faults
    assert fault.field == "capture"
    assert len(fault.message) < 120


def test_the_least_recently_used_makes_room(clock):
    captures = [make_capture(name_of(number)) for number in range(4)]
    store = CaptureStore(3 * captures[0].num_bytes, clock)
    for capture in captures[:3]:
        store.add(capture)
    store.find(str(captures[0].id), None)
    store.add(captures[3])
    assert store.lost == {"evicted": 1}
    with pytest.raises(Gone):
        store.find(str(captures[1].id), None)
    for number in (0, 2, 3):
        assert store.find(str(captures[number].id), None) is captures[number]
    assert store.num_bytes <= store.max_bytes


def test_what_is_remembered_goes_first(store):
    captures = [make_capture(name_of(number), length=1100) for number in range(3)]
    for capture in captures:
        store.add(capture)
    for capture in captures[1:]:
        capture.head(0, 0).tile(0, 0, 0)
        store.settle(capture)
    assert store.num_bytes == sum(capture.num_bytes for capture in captures)
    assert [capture.remembered_bytes > 0 for capture in captures] == [False, True, True]
    store.max_bytes = store.num_bytes - 1
    store.settle(captures[0])
    # Of the one that computed it longest ago; and it is computed again.
    assert [capture.remembered_bytes > 0 for capture in captures] == [False, False, True]
    assert captures[1].head(0, 0).tile(0, 0, 0).any()
    store.max_bytes = store.num_bytes
    store.settle(captures[1])
    assert [capture.remembered_bytes > 0 for capture in captures] == [False, True, False]
    assert len(store) == 3
    assert store.num_bytes == sum(capture.num_bytes for capture in captures)


def test_what_was_let_in_stays_while_it_is_alone(clock):
    captures = [make_capture(name_of(number)) for number in range(2)]
    store = CaptureStore(captures[0].num_bytes - 1, clock)
    for capture in captures:
        store.add(capture)
        assert store.find(str(capture.id), None) is capture
    assert (len(store), store.lost) == (1, {"evicted": 1})


def test_what_a_dropped_capture_remembers_counts_for_nothing(store):
    capture = make_capture(length=1100)
    store.add(capture)
    store.remove(str(capture.id), None)
    # A thread was still at it.
    capture.head(0, 0).tile(0, 0, 0)
    store.settle(capture)
    assert (len(store), store.num_bytes) == (0, 0)
    another = make_capture(expires=2000)
    store.add(another)
    store.settle(capture)
    assert store.num_bytes == another.num_bytes
    with pytest.raises(Gone):
        store.find(str(capture.id), None)


def test_ends_of_captures_that_are_gone_are_forgotten(store):
    for number in range(1000):
        capture = make_capture(name_of(number))
        store.add(capture)
        store.remove(str(capture.id), None)
    assert len(store._ends) < 100
    store.add(make_capture(expires=500))
    assert min(store._ends) == (500, "a" * 16)


def test_memory_comes_back_though_nobody_asks(store, clock):
    async def wait():
        for number, end in enumerate((130, 110, 120)):
            store.add(make_capture(name_of(number), expires=end))
            store.sweep_in_time()
        for end, num_left in ((110, 2), (120, 1), (130, 0)):
            clock.now = float(end)
            # As the loop does when it is time.
            store._timer._run()
            assert len(store) == num_left
        assert store._timer is None

    asyncio.run(wait())
    assert store.lost == {"expired": 3}
    assert store.num_bytes == 0


def test_room_there_never_is(store):
    store.check_room(store.max_bytes)
    with pytest.raises(TooLarge, match="may take 10000000 bytes, this one needs 10000001"):
        store.check_room(store.max_bytes + 1)


def test_names(store, clock):
    made = store.make_id(None, 60)
    assert made.expires == 161
    assert made.name != store.make_id(None, 60).name
    given = store.make_id("gateway-0123456789", 0.5)
    assert given == CaptureId(name="gateway-0123456789", expires=101)
    store.add(make_capture("gateway-0123456789"))
    with pytest.raises(Conflict, match="Capture-Id"):
        store.make_id("gateway-0123456789", 60)
    # Two at a time: the second one finds out in the end.
    with pytest.raises(Conflict):
        store.add(make_capture("gateway-0123456789", expires=999))
    assert store.num_taken == 1


def test_heads_are_made_once():
    capture = make_capture()
    assert capture.head(1, 0) is capture.head(1, 0)
    assert capture.head(1, 0) is not capture.head(1, 1)
    assert np.array_equal(capture.head(1, 1).query, capture.layers[1].query[1])
