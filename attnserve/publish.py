"""Publishing: a bundle appears in its repository whole and proven, or not at all."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnserve import bundle

TEMPORARY = ".tmp-"
# An export takes seconds to minutes. What nobody has written to for a day was left by one that was killed.
ABANDONED_SECONDS = 24 * 3600


class ExportError(ValueError):
    """The export cannot be done as asked; the message names the argument."""


def check_destination(place: Path) -> None:
    """Refuse a destination that is not repository/<model>/<positive integer>, or is taken.

    Raises:
        ExportError: names the argument.
    """
    if not bundle.is_version(place.name) or not bundle.is_model_name(place.parent.name):
        raise ExportError(
            "destination: expected REPOSITORY/model/version with a version like 1 and a model of letters, digits, "
            f"'.', '_' and '-', got {place}"
        )
    # A link that leads nowhere takes the name as well.
    if os.path.lexists(place):
        raise ExportError(f"destination: {place} exists; versions are never overwritten, choose the next number")


@contextmanager
def publishing(place: Path) -> Iterator[Path]:
    """A new folder beside `place` that becomes `place` when the block ends, and is removed when it raises.

    Raises:
        ExportError: `place` exists by then, or cannot be written.
    """
    folder = place.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    created_parents = [parent for parent in place.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        remove_abandoned(place.parent, now=time.time())
        yield folder
        publish(folder, place)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in created_parents:
            # Not empty: another export is at work there.
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise ExportError(f"destination: {place} cannot be written: {error}") from error
        raise


def publish(folder: Path, place: Path) -> None:
    """Flush a finished bundle to disk and rename it into place.

    Raises:
        ExportError: `place` exists; of two exports racing for one version, one gets this.
    """
    for path in [*folder.rglob("*"), folder]:
        flush(path)
    try:
        # Renaming a folder onto one that is not empty fails; a bundle never is.
        folder.rename(place)
    except OSError as error:
        if os.path.lexists(place):
            raise ExportError(f"destination: {place} exists; another export was first") from None
        raise error
    # The names are on disk when the folders that hold them are: of the version, and of a new model.
    flush(place.parent)
    flush(place.parent.parent)


def remove_abandoned(folder: Path, *, now: float) -> None:
    """Remove what killed exports left in a model's folder, `ABANDONED_SECONDS` after they last wrote to it."""
    for entry in folder.glob(f"{TEMPORARY}*"):
        # Missing: another export has just removed or renamed it.
        with suppress(FileNotFoundError):
            if now - entry.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
