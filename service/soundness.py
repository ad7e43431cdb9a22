"""`Soundness`: whether what answers still answers rightly, asked when it has failed."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Soundness:
    """Of one model; once it is lost, it stays so.

    Args:
        is_sound: asks the model.
        on_lost: told once, when it is not.
    """

    def __init__(self, is_sound: Callable[[], bool], on_lost: Callable[[], None]) -> None:
        self._is_sound = is_sound
        self._on_lost = on_lost
        self._asking = threading.Lock()
        self._is_lost = False

    def ask(self) -> bool:
        """Whether it still answers rightly. One thread asks, and the others wait for what it finds."""
        with self._asking:
            if not self._is_lost and not self._is_sound():
                self._is_lost = True
                log.critical("the device does not answer golden rightly any more")
                self._on_lost()
            return not self._is_lost
