"""Deadlines: how long a client waits, told by header or body. What is late is dropped, and answered 504."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from attnserve.service.problems import DeadlineExceeded, Invalid
from attnserve.service.selection import describe

HEADER = "Timeout-Ms"
MAX_TIMEOUT_MS = 24 * 3600 * 1000


@dataclass(eq=False)
class Deadline:
    """When a request must be answered."""

    start: float
    """Of the event loop's clock, as all here."""
    scope: asyncio.Timeout
    milliseconds: float = math.inf

    @property
    def at(self) -> float | None:
        """When; None is never."""
        return None if math.isinf(self.milliseconds) else self.start + self.milliseconds / 1000

    def shorten(self, milliseconds: float | None) -> None:
        """Allow no more than this since the request came; None is no limit."""
        if milliseconds is not None and milliseconds < self.milliseconds:
            self.milliseconds = milliseconds
            self.scope.reschedule(self.at)

    @property
    def problem(self) -> DeadlineExceeded:
        """What a late request is answered."""
        return DeadlineExceeded(f"not answered within {self.milliseconds:g} ms")


@contextlib.asynccontextmanager
async def within_deadline(request: Request, default_ms: float) -> AsyncIterator[Deadline]:
    """Do the work of a request within its deadline.

    Args:
        request: its header may have a timeout.
        default_ms: for requests that name none; 0 is no limit.

    Raises:
        DeadlineExceeded: it took longer; what was waited for is cancelled.
        Invalid: the header holds no timeout.
    """
    scope = asyncio.timeout(None)
    deadline = Deadline(start=asyncio.get_running_loop().time(), scope=scope)
    try:
        async with scope:
            deadline.shorten(default_ms or None)
            deadline.shorten(_parse_header(request.headers.get(HEADER)))
            yield deadline
    except TimeoutError:
        if scope.expired():
            raise deadline.problem from None
        raise


def parse_timeout(value: Any, field: str, *, unit_ms: float = 1.0) -> float:
    """Milliseconds from a field of a body.

    Raises:
        Invalid: no number, or not above 0 and within a day.
    """
    if type(value) not in (int, float) or not 0 < value * unit_ms <= MAX_TIMEOUT_MS:
        expected = f"a number > 0 and at most {MAX_TIMEOUT_MS / unit_ms:.0f}"
        raise Invalid.about(field, f"expected {expected}, got {describe(value)}")
    return float(value * unit_ms)


def _parse_header(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value: Any = float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        value = text
    return parse_timeout(value, HEADER)
