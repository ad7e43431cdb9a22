"""An event loop whose time passes only when nothing is left to do, and then at once."""

import asyncio
import selectors

import pytest


class _Leap(selectors.SelectSelector):
    def __init__(self, loop):
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        assert timeout is not None, "the load waits for ever"
        self.loop.now_s += timeout
        return super().select(0)


class ScriptedLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.now_s = 1000.0
        super().__init__(_Leap(self))

    def time(self):
        return self.now_s


@pytest.fixture
def runner():
    """Runs coroutines by a clock of their own, from second 1000."""
    with asyncio.Runner(loop_factory=ScriptedLoop) as running:
        yield running
