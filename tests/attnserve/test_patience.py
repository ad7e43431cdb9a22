"""Asking again: only where another answer may come, as late as the service says, and not for ever."""

import pytest

from attnserve.patience import REFUSING, RETRY_S, retrying
from attnserve.remote import RemoteError


def never(_):
    raise AssertionError("nobody waits here")


def answering(*answers):
    left = iter(answers)

    def ask():
        answer = next(left)
        if isinstance(answer, RemoteError):
            raise answer
        return answer

    return ask


def test_what_passes_is_asked_again():
    waits = []
    ask = answering(RemoteError("down"), RemoteError("draining", 503), "answer")
    assert retrying(ask, wait=waits.append) == "answer"
    assert waits == [RETRY_S, RETRY_S]


def test_a_service_says_when():
    waits = []
    ask = answering(RemoteError("full", 429, retry_after_s=7), RemoteError("full", 429, retry_after_s=3), "answer")
    assert retrying(ask, statuses=REFUSING, max_seconds=10, wait=waits.append) == "answer"
    assert waits == [7, 3]


def test_nobody_waits_longer_than_they_want_to():
    waits = []
    ask = answering(RemoteError("full", 429, retry_after_s=7), RemoteError("full", 429, retry_after_s=4))
    with pytest.raises(RemoteError, match="full"):
        retrying(ask, statuses=REFUSING, max_seconds=10, wait=waits.append)
    # Not at all, where the wait would be in vain.
    assert waits == [7]


def test_it_ends_though_a_service_says_at_once():
    waits = []

    def ask():
        raise RemoteError("full", 429, retry_after_s=0)

    with pytest.raises(RemoteError, match="full"):
        retrying(ask, max_seconds=2, wait=waits.append)
    assert waits == [0.5] * 4


@pytest.mark.parametrize("status", [422, 404, None])
def test_what_will_not_change_is_not_asked_again(status):
    with pytest.raises(RemoteError, match="wrong"):
        retrying(answering(RemoteError("wrong", status)), statuses=REFUSING, wait=never)


def test_what_was_refused_is_not_asked_again():
    with pytest.raises(RemoteError, match="wrong"):
        retrying(answering(RemoteError("wrong", 422)), wait=never)
