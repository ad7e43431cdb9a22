"""The sweep of the store of checkpoints: what killed processes left, and content that nobody needs.

Standard library only.
"""

import fcntl
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from attnserve.bundle import is_model_name
from attnserve.checkpoints import BLOBS, TEMPORARY, Checkpoints, is_sha256

UNUSED_SECONDS = 24 * 3600
"""How long content is kept that no checkpoint has, from its upload or the last time that it was pinned."""

SWEPT = "swept-"


def sweep(checkpoints: Checkpoints, now: float) -> None:
    """Remove what is left in `.tmp` and written by nobody, and content that has not been needed for `UNUSED_SECONDS`.

    Uploads, pins and other sweeps may go on meanwhile, and it may be killed at any time.

    Args:
        checkpoints: the store.
        now: seconds since the epoch.

    Raises:
        OSError: the folder cannot be read or written.
    """
    folder, names = checkpoints.folder, checkpoints.list_folder()
    if BLOBS not in names:
        return
    for name in names:
        # Of an upload that was killed before its link; one that lives makes it again.
        if is_model_name(name) and not checkpoints.read_links(name):
            with suppress(OSError):
                (folder / name).rmdir()
    used = checkpoints.list_used()
    for blob in (folder / BLOBS).iterdir():
        if is_sha256(blob.name) and blob.name not in used and _is_old(blob, now):
            # Taken aside first and judged then: an upload or a pin may have come in between.
            with suppress(FileNotFoundError):
                blob.replace(folder / TEMPORARY / f"{SWEPT}{blob.name}")
    used = checkpoints.list_used()
    for entry in (folder / TEMPORARY).iterdir():
        sha256 = entry.name.removeprefix(SWEPT)
        if sha256 != entry.name and (sha256 in used or not _is_old(entry, now)):
            # Another sweep may have been faster, or an upload have brought it anew.
            with suppress(FileNotFoundError, FileExistsError):
                checkpoints.name_blob(sha256).hardlink_to(entry)
        _remove_abandoned(entry, now)


def _is_old(path: Path, now: float) -> bool:
    with suppress(FileNotFoundError):
        return now - path.stat().st_mtime > UNUSED_SECONDS
    return False


def _remove_abandoned(entry: Path, now: float) -> None:
    with suppress(FileNotFoundError):
        if entry.is_symlink():
            entry.unlink()
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with entry.open("rb") as file:
                if not _is_written(file, now):
                    # While it is locked: its writer may be about to lock it.
                    entry.unlink()


def _is_written(file: BinaryIO, now: float) -> bool:
    """Whether whoever writes a file is alive, and holds a lock on it; if not, it is locked by us."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks. Nobody writes nothing for a day.
        return not _is_old(Path(file.name), now)
    return False
