from types import SimpleNamespace

import pytest

from attnserve.bundle import BundleError
from attnserve.service.guests import STAY_SECONDS, Guests
from attnserve.service.problems import Conflict, NotFound


class Loader:
    """In the place of loading: notes what was loaded, and which guests are still there."""

    def __init__(self):
        self.loaded = []
        self.now = 0.0
        self.error = None
        self.guests = Guests(self.load, lambda reason: reason.replace("/secret/", ""), lambda: self.now)

    def load(self, name, version):
        self.loaded.append((name, version))
        if self.error is not None:
            raise self.error
        batcher = SimpleNamespace(is_open=True)
        batcher.close = lambda: setattr(batcher, "is_open", False)
        return SimpleNamespace(name=name, version=version, batcher=batcher)


@pytest.fixture
def loader():
    return Loader()


def test_the_last_one_is_kept_and_makes_room_for_the_next(loader):
    first = loader.guests.invite("a", 1, [1, 2])
    assert loader.guests.invite("a", 1, [1, 2]) is first
    assert loader.guests.invite("a", 2, [1, 2]).version == 2
    assert loader.guests.invite("a", 1, [1, 2]) is not first
    assert loader.loaded == [("a", 1), ("a", 2), ("a", 1)]


def test_one_whose_worker_has_died_is_loaded_again(loader):
    loader.guests.invite("a", 1, [1]).batcher.close()
    assert loader.guests.invite("a", 1, [1]).batcher.is_open
    assert loader.loaded == [("a", 1)] * 2


@pytest.mark.parametrize(
    ("versions", "seconds", "stays"),
    [
        ({"a": (1, 2)}, STAY_SECONDS, True),
        ({"a": (1, 2)}, STAY_SECONDS + 1, False),
        ({"a": (2,)}, 0, False),
        ({}, 0, False),
    ],
    ids=["there", "nobody asks", "version gone", "model gone"],
)
def test_it_goes_when_it_is_gone_or_nobody_asks(loader, versions, seconds, stays):
    loader.guests.invite("a", 1, [1, 2])
    loader.now += seconds
    loader.guests.dismiss(versions)
    loader.guests.invite("a", 1, [1, 2])
    assert len(loader.loaded) == (1 if stays else 2)


def test_what_cannot_be_loaded_leaves_nobody(loader):
    loader.guests.invite("a", 1, [1, 2])
    loader.error = BundleError("/secret/a/2: damaged")
    with pytest.raises(Conflict, match=r"^version 2 cannot be served: a/2: damaged$"):
        loader.guests.invite("a", 2, [1, 2])
    with pytest.raises(NotFound, match=r"expected one of \[1, 2\], got 3"):
        loader.guests.invite("a", 3, [1, 2])
    loader.error = None
    assert loader.guests.invite("a", 1, [1, 2]).version == 1
    assert loader.loaded == [("a", 1), ("a", 2), ("a", 1)]


def test_nobody_is_dismissed_while_one_is_being_loaded(loader):
    load = loader.load
    loader.guests._load = lambda *version: (loader.guests.dismiss({}), load(*version))[1]
    guest = loader.guests.invite("a", 1, [1])
    assert loader.guests.invite("a", 1, [1]) is guest
    loader.guests.close()
    assert not guest.batcher.is_open
