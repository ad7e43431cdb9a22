"""Memory shared by requests."""

import pytest

from attnserve.service.budget import Budget
from attnserve.service.problems import Overloaded, TooLarge


def test_what_is_held_is_given_back():
    budget = Budget(100)
    with budget.hold(60), budget.hold(40):
        assert budget.num_bytes == 100
    assert budget.num_bytes == 0


def test_what_fails_gives_back_too():
    budget = Budget(100)
    with pytest.raises(ZeroDivisionError), budget.hold(60):
        1 / 0  # noqa: B018
    assert budget.num_bytes == 0


def test_too_little_left_is_no_fault_of_the_client():
    budget = Budget(100)
    with (
        budget.hold(60),
        pytest.raises(Overloaded, match="hold 60 of 100 bytes, this one needs 41 more"),
        budget.hold(41),
    ):
        pass
    assert budget.num_bytes == 0


def test_more_than_there_is_is():
    expected = "sequences: body, .* may take 100 bytes, those of this request need 101"
    with pytest.raises(TooLarge, match=expected), Budget(100).hold(101):
        pass
    with pytest.raises(TooLarge, match="tokens: body, "), Budget(100).hold(101, "tokens"):
        pass
