"""Patience: asking a service again when it says, or when it was away for a moment."""

import time
from collections.abc import Callable, Collection
from typing import TypeVar

from attnserve.remote import RemoteError

Answer = TypeVar("Answer")

RETRY_S = 2.0
# However soon a service says: it was not ready just now.
MIN_RETRY_S = 0.5
PASSING = frozenset({None, 429, 502, 503, 504})
"""Statuses, or none, that may be another one the next time."""
REFUSING = frozenset({429, 503})
"""Statuses of a service that is there and knows when to come back."""


def retrying(
    ask: Callable[[], Answer],
    *,
    statuses: Collection[int | None] = PASSING,
    max_seconds: float = 2 * RETRY_S,
    wait: Callable[[float], object] = time.sleep,
) -> Answer:
    """What `ask` returns, which is asked again after as long as the answer says (Retry-After), or a moment.

    Args:
        ask: may be asked several times.
        statuses: those after which it is.
        max_seconds: of all waits together.
        wait: does it.

    Raises:
        RemoteError: it refuses, is away for long, or wants to be left alone for longer than that.
    """
    left = max_seconds
    while True:
        try:
            return ask()
        except RemoteError as error:
            pause = RETRY_S if error.retry_after_s is None else max(MIN_RETRY_S, error.retry_after_s)
            if error.status not in statuses or pause > left:
                raise
        left -= pause
        wait(pause)
