"""An upload: a file on its way into the store of checkpoints."""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path

from attnserve.checkpoints import BLOBS, TEMPORARY, Checkpoints, DigestError, Stored, read_link, target_of
from attnserve.publish import flush

# A removal or a sweep may take a folder away from under the link that is about to be put into it: not this often.
MAX_TRIES = 100


class Upload:
    """A file that has no name until it is committed; aborted, or when its process is killed, it is gone.

    Threads may take turns with it: one may give it up while another is still writing.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._path = checkpoints.name_temporary()
        self._file: FileIO | None = None
        self._is_over = False
        self.num_bytes = 0
        """Written until now."""

    def open(self, num_bytes: int = 0) -> None:
        """Make the file; `num_bytes` are known to come.

        Raises:
            OSError: it cannot be made, or so much is not free.
        """
        folder = self._checkpoints.folder
        with self._lock:
            assert not self._is_over, "commit() and abort() come last"
            # In this order: a sweep takes one that has the last for one that has both.
            for name in (TEMPORARY, BLOBS):
                _make_folder(folder / name)
            if shutil.disk_usage(folder).free < num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            while self._file is None:
                file = FileIO(self._path, "x")
                # A file system that has no locks is swept by age.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Swept before it was locked, it has no name any more.
                if os.fstat(file.fileno()).st_nlink:
                    self._file = file
                else:
                    file.close()

    def write(self, piece: bytes | bytearray) -> None:
        """Add to it.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            assert self._file is not None, "open() comes first, commit() and abort() come last"
            view = memoryview(piece)
            self.num_bytes += len(view)
            self._hash.update(view)
            while view:
                view = view[self._file.write(view) :]

    def commit(self, name: str, file: str, expected_sha256: str | None = None) -> Stored:
        """Make it a file of a checkpoint, in the place of the one that may be there; it is on disk then.

        Raises:
            DigestError: it is not what was expected.
            CheckpointsError: no checkpoint may be called so or have such a file, or others have taken the name.
            OSError: it cannot be written.
        """
        with self._lock:
            assert self._file is not None, "open() comes first, commit() and abort() come last"
            try:
                sha256 = self._hash.hexdigest()
                if expected_sha256 not in (None, sha256):
                    raise DigestError(f"sha256: expected content with {expected_sha256}, got {sha256}")
                # A link to it may be opened in an editor, and its content belongs to its name.
                os.fchmod(self._file.fileno(), os.fstat(self._file.fileno()).st_mode & 0o444)
                os.fsync(self._file.fileno())
                is_new = self._place(name, file, sha256)
                return Stored(sha256=sha256, num_bytes=self.num_bytes, is_new=is_new)
            finally:
                self._end()

    def abort(self) -> None:
        """Remove it, unless it was committed."""
        with self._lock:
            self._end()

    def _place(self, name: str, file: str, sha256: str) -> bool:
        self._checkpoints.check_place(name, file)
        folder = self._checkpoints.folder
        # Also where it is already: it is new to sweeps then, and whole again if a disk has damaged it.
        self._path.replace(self._checkpoints.name_blob(sha256))
        flush(folder / BLOBS)
        place = folder / name / file
        for num_left in reversed(range(MAX_TRIES)):
            link = self._checkpoints.name_temporary()
            try:
                # Not `exist_ok`, which raises if it is removed again meanwhile.
                with suppress(FileExistsError):
                    place.parent.mkdir()
                link.symlink_to(target_of(sha256))
                is_new = read_link(place) is None
                link.replace(place)
                flush(place.parent)
                break
            except FileNotFoundError:
                link.unlink(missing_ok=True)
                if not num_left:
                    raise
        flush(folder)
        return is_new

    def _end(self) -> None:
        # Also of one that was never opened: a thread may be about to.
        self._is_over = True
        if self._file is not None:
            # Left behind on a disk that has just failed, it is swept: its lock ends here.
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)
