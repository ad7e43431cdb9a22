"""The keyring: the keys in force. Those of a file follow the file, so that keys change without a restart."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnserve.service.keys import Key, check_unique, find_key, parse_keys

# A key that was taken out of the file opens nothing after so long.
CHECK_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What changes when a file is written, replaced, or made readable."""

    inode: int
    modified_ns: int
    changed_ns: int
    num_bytes: int


class Keyring:
    """Keys of the settings, and of a file that is looked at when somebody asks, at most once a second.

    A file that cannot be read, or is wrong, leaves the keys as they were, and one error in the log: a slip of the pen
    locks nobody out. That is why an empty file is wrong too; many editors empty a file before they write it. For one
    event loop: it has no lock.

    Args:
        keys: of the settings.
        file: empty or None if there is none.
        clock: seconds, of any start.

    Raises:
        ValueError: the file cannot be read, or is wrong.
    """

    def __init__(
        self, keys: Sequence[Key], file: str | os.PathLike[str] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = tuple(keys)
        self._file = Path(file) if file else None
        self._clock = clock
        self._checked = clock()
        self._stamp = self._look()
        self._keys = self._read()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys in force, as last read."""
        return self._keys

    def find(self, secret: str) -> Key | None:
        """The key that somebody sent, or None if it is none of these."""
        if self._file is not None and self._clock() - self._checked >= CHECK_SECONDS:
            self._refresh()
        return find_key(self._keys, secret)

    def _refresh(self) -> None:
        self._checked = self._clock()
        # Before the file is read: what is written meanwhile is found the next time.
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except ValueError as error:
            log.error("%s; the keys from before stay in force", error)
        else:
            log.info("keys were read again: %s", ", ".join(key.name for key in self._keys))

    def _look(self) -> Stamp | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return Stamp(
            inode=found.st_ino, modified_ns=found.st_mtime_ns, changed_ns=found.st_ctime_ns, num_bytes=found.st_size
        )

    def _read(self) -> tuple[Key, ...]:
        if self._file is None:
            return self._own
        try:
            keys = (*self._own, *parse_keys(self._file.read_text("utf-8")))
            if self._own:
                check_unique(keys)
        except OSError as error:
            raise ValueError(f"keys_file: expected a file, got {self._file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"keys_file: {self._file}: expected UTF-8, got something else") from None
        except ValueError as error:
            raise ValueError(f"keys_file: {self._file}: {error}") from None
        return keys
