"""Traffic: who uses CUDA in this process, so that a graph can be recorded while nobody else does.

While one thread records, calls of CUDA that allocate or wait fail in all others, and spoil what is recorded
(`cudaStreamCaptureModeGlobal`). So runs and loads are counted, and a recording waits for runs, which take
milliseconds, and not for loads, which take seconds.
"""

import contextlib
import threading
from collections.abc import Iterator


class Traffic:
    """Runs and loads in any thread; silence is what a recording needs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_runs = 0
        self._num_loads = 0
        self._num_listening = 0
        self._is_silent = False

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Use the device for some milliseconds; waits for a recording, and for one that waits already."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_silent and not self._num_listening)
            self._num_runs += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_runs -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Use the device for seconds; waits for a recording, and those who wait to record give it up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_silent)
            self._num_loads += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._num_loads -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def silence(self) -> Iterator[bool]:
        """Nobody else uses the device meanwhile; False, and no silence, where a load is under way."""
        with self._changed:
            self._num_listening += 1
            try:
                self._changed.wait_for(lambda: self._num_loads or not (self._is_silent or self._num_runs))
                is_silent = self._is_silent = not self._num_loads
            finally:
                self._num_listening -= 1
                self._changed.notify_all()
        try:
            yield is_silent
        finally:
            if is_silent:
                with self._changed:
                    self._is_silent = False
                    self._changed.notify_all()


CUDA = Traffic()
"""Of this process: CUDA knows no smaller unit."""
