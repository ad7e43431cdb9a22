"""Names of workers: the same at every start, and one worker's at a time."""

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnserve.flags import spell

LOCKS_FOLDER = ".workers"


@contextmanager
def hold_name(folder: Path, wanted: str, host: str) -> Iterator[str]:
    """Have a name for oneself while the block runs; the system lets go of it when the process ends, however it does.

    A worker goes on at once with the jobs that its name has begun. With somebody else's name it would take them away
    from him.

    Args:
        folder: that all workers share.
        wanted: the name; empty for the name of the host, or that and the first number from 2 on that is free.
        host: its name.

    Raises:
        ValueError: another worker has it, or the folder cannot be written.
    """
    name, descriptor = _take_name(folder / LOCKS_FOLDER, wanted, host)
    try:
        yield name
    finally:
        os.close(descriptor)


def _take_name(locks: Path, wanted: str, host: str) -> tuple[str, int]:
    """A name and the open file whose lock it is."""
    base = re.sub(r"[^A-Za-z0-9._-]", "-", host)[:50].strip(".-_") or "worker"
    names = [wanted] if wanted else (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))
    try:
        locks.mkdir(parents=True, exist_ok=True)
        for name in names:
            descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return name, descriptor
            except BlockingIOError:
                os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{spell('checkpoints')}: {locks} cannot be written: {error.strerror}") from None
    raise ValueError(f"{spell('name')}: expected a name that no other worker has, got {wanted!r}, which runs already")
