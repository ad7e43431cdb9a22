"""Idle: whether anybody waits for an answer. What is done for nobody in particular is done only while nobody does."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator


class Idle:
    """Counts those who wait; for one event loop."""

    def __init__(self) -> None:
        self._num_waiting = 0
        self._interrupts: list[Callable[[], object]] = []
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Somebody waits, for the length of a `with` block; what is under way for nobody is interrupted."""
        self._num_waiting += 1
        self._is_idle.clear()
        for interrupt in self._interrupts:
            interrupt()
        try:
            yield
        finally:
            self._num_waiting -= 1
            if not self._num_waiting:
                self._is_idle.set()

    async def wait(self) -> None:
        """Until nobody waits for an answer."""
        # Somebody may have come between the event and this coroutine's turn.
        while self._num_waiting:
            await self._is_idle.wait()

    @contextlib.contextmanager
    def until_busy(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Do something for nobody, in a `with` block.

        Args:
            interrupt: called when somebody comes; returns at once.
        """
        self._interrupts.append(interrupt)
        try:
            yield
        finally:
            self._interrupts.remove(interrupt)
