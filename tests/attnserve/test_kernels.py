"""Which library of kernels is taken."""

import pytest

from attnserve.kernels import find_kernels, require_kernels


@pytest.fixture
def places(tmp_path):
    return tmp_path / "wheel.so", tmp_path / "checkout.so"


def test_the_first_that_exists_is_taken_by_itself(places):
    assert find_kernels("auto", places) is None
    places[1].touch()
    assert find_kernels("auto", places) == places[1]
    places[0].touch()
    assert find_kernels("auto", places) == places[0]


def test_who_requires_kernels_is_told_that_there_are_none(places):
    with pytest.raises(ValueError, match=r"^kernels: expected a library, found none"):
        require_kernels("auto", places)
    assert require_kernels("off", places) is None


def test_who_requires_kernels_is_told_that_they_are_none(places):
    places[1].touch()
    with pytest.raises(ValueError, match=rf"^kernels: expected a library that loads, got {places[1]}: "):
        require_kernels("auto", places)


def test_none_is_taken_when_they_are_off(places):
    places[0].touch()
    assert find_kernels("off", places) is None


def test_a_path_is_taken_as_it_is(places, tmp_path, monkeypatch):
    own = tmp_path / "own.so"
    own.touch()
    places[0].touch()
    assert find_kernels(str(own), places) == own
    # Whole: ONNX Runtime looks for a bare name where the system's libraries are.
    monkeypatch.chdir(tmp_path)
    assert find_kernels("own.so", places) == own


@pytest.mark.parametrize("wanted", ["", "on", "missing.so", "."])
def test_what_is_no_file_is_refused_by_name(wanted, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places[0].touch()
    with pytest.raises(ValueError, match=r"^kernels: expected auto, off or the path of a library, got "):
        find_kernels(wanted, places)
