"""The checkpoints that services were sent: a folder that services and workers share. Standard library only.

    .blobs/<sha256>    the content of a file, which never changes
    <name>/<file>      a file of a checkpoint: a link to ../.blobs/<sha256>, replaced as a whole
    .tmp/              what is being written, and what is being thrown away

Any number of processes use it at once, and any of them may be killed at any time. So every change is one rename of what
is whole and on disk already, and what stands in `.tmp` may be removed by anybody, unless its writer holds a lock on it.
"""

import errno
import itertools
import os
import re
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attnserve.bundle import is_model_name
from attnserve.checkpoint_files import FILES, NEEDED, explain_pickle
from attnserve.publish import flush

BLOBS, TEMPORARY = ".blobs", ".tmp"
NO_LINK = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL})


class CheckpointsError(ValueError):
    """The store does not do what it is asked; the message names the field."""


class UnknownError(CheckpointsError):
    """There is no such checkpoint, or it lacks a file."""


class ForeignError(CheckpointsError):
    """Something of that name is there that no upload has made."""


class DigestError(CheckpointsError):
    """The content is not what its sender says it is."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file of a checkpoint."""

    sha256: str
    num_bytes: int
    is_new: bool = False
    """Whether the checkpoint had no file of that name before; of a commit."""


class Checkpoints:
    """The store in a folder, which the first upload makes.

    Args:
        folder: `attnserve.jobs.locate_checkpoints` says where it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def describe_all(self) -> dict[str, dict[str, Stored]]:
        """What every checkpoint has, by name, sorted; whole or not.

        Raises:
            OSError: the folder cannot be read.
        """
        found = {}
        for name in sorted(self.list_folder()):
            # Anything else, or removed since.
            with suppress(UnknownError):
                found[name] = self.describe(name)
        return found

    def describe(self, name: str) -> dict[str, Stored]:
        """What a checkpoint has, by file.

        Raises:
            UnknownError: nothing.
            OSError: the folder cannot be read.
        """
        found = {}
        for file, sha256 in self.read_links(name).items():
            # Content that a broken disk has lost is one file less.
            with suppress(FileNotFoundError):
                found[file] = Stored(sha256=sha256, num_bytes=self.name_blob(sha256).stat().st_size)
        if not found:
            raise UnknownError(f"checkpoint: expected one that was uploaded, got {name[:64]!r}")
        return found

    def find(self, name: str, file: str) -> Stored | None:
        """A file of a checkpoint, or None if there is none.

        Raises:
            OSError: the folder cannot be read.
        """
        with suppress(UnknownError):
            return self.describe(name).get(file)
        return None

    def pin(self, name: str) -> dict[str, str]:
        """sha256 of every file, as of one moment; their content is kept for a day, whatever becomes of the checkpoint.

        Raises:
            UnknownError: there is no such checkpoint, or it lacks config.json or model.safetensors.
            OSError: the folder cannot be read.
        """
        # Several files are several looks, and an upload or a removal may come in between.
        looks = (self.describe(name) for _ in itertools.count())
        found = next(look for look, again in itertools.pairwise(looks) if look == again)
        if missing := [file for file in NEEDED if file not in found]:
            raise UnknownError(f"checkpoint: expected {missing[0]} in {name}, got {', '.join(found)}")
        for file, stored in found.items():
            try:
                os.utime(self.name_blob(stored.sha256))
            except FileNotFoundError:
                raise UnknownError(f"checkpoint: {file} of {name} is gone; upload it again") from None
        return {file: stored.sha256 for file, stored in found.items()}

    def locate_blob(self, sha256: str) -> Path:
        """Where content is: a plain file, to be read, copied or hard-linked and never written to.

        Raises:
            UnknownError: it is not here, or not any more.
        """
        if not is_sha256(sha256) or not self.name_blob(sha256).is_file():
            raise UnknownError(f"sha256: expected that of an uploaded file, got {sha256[:64]!r}")
        return self.name_blob(sha256)

    def check_place(self, name: str, file: str) -> None:
        """See that a file may be put there.

        Raises:
            CheckpointsError: no checkpoint may be called so, or have such a file.
            ForeignError: something of that name is there that no upload has made.
            OSError: the folder cannot be read.
        """
        if not is_model_name(name):
            raise CheckpointsError(
                f"name: expected letters, digits, '.', '_' and '-', a letter or digit first, got {name[:64]!r}"
            )
        if file not in FILES:
            hint = explain_pickle([file])
            raise CheckpointsError(f"file: expected one of {', '.join(FILES)}, got {file[:64]!r}{hint}")
        self._refuse_foreign(name)

    def remove(self, name: str) -> None:
        """Remove a checkpoint; its content goes a day after it was last needed.

        Raises:
            UnknownError: there is no such checkpoint.
            ForeignError: it has files that no upload has made.
            OSError: it cannot be removed.
        """
        unknown = UnknownError(f"checkpoint: expected one that was uploaded, got {name[:64]!r}")
        if not self.read_links(name):
            raise unknown
        self._refuse_foreign(name)
        aside = self.name_temporary()
        try:
            (self.folder / name).rename(aside)
        except FileNotFoundError:
            raise unknown from None
        flush(self.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def remove_file(self, name: str, file: str) -> None:
        """Remove a file of a checkpoint; the checkpoint goes with the last one.

        Raises:
            UnknownError: it has no such file.
            OSError: it cannot be removed.
        """
        unknown = UnknownError(f"file: expected one that {name[:64]} has, got {file[:64]!r}")
        if file not in self.read_links(name):
            raise unknown
        folder = self.folder / name
        try:
            (folder / file).unlink()
        except FileNotFoundError:
            raise unknown from None
        # There may be others.
        with suppress(OSError):
            folder.rmdir()
        flush(self.folder)

    def list_used(self) -> set[str]:
        """sha256 of all content that any checkpoint has.

        Raises:
            OSError: the folder cannot be read.
        """
        return {sha256 for name in self.list_folder() for sha256 in self.read_links(name).values()}

    def list_folder(self) -> list[str]:
        """Names of all that is in the folder, ours or not."""
        return os.listdir(self.folder) if self.folder.exists() else []

    def read_links(self, name: str) -> dict[str, str]:
        """sha256 that the links of a checkpoint name, by file; empty if there is no such checkpoint."""
        folder = self.folder / name
        if not is_model_name(name) or folder.is_symlink():
            return {}
        links = {file: read_link(folder / file) for file in FILES}
        return {file: sha256 for file, sha256 in links.items() if sha256 is not None}

    def name_blob(self, sha256: str) -> Path:
        """Where content is, or would be."""
        return self.folder / BLOBS / sha256

    def name_temporary(self) -> Path:
        """A free name for what is being written or thrown away."""
        return self.folder / TEMPORARY / uuid.uuid4().hex

    def _refuse_foreign(self, name: str) -> None:
        folder = self.folder / name
        try:
            is_foreign = folder.is_symlink() or any(_is_foreign(folder / file) for file in os.listdir(folder))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            # It, or the store.
            is_foreign = os.path.lexists(folder)
        if is_foreign:
            raise ForeignError(f"name: expected one that is free or was uploaded, got {name}, which holds other files")


def is_sha256(text: str) -> bool:
    """Whether it is one, in hexadecimal as we write it."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def target_of(sha256: str) -> str:
    """What a link to content says."""
    return f"../{BLOBS}/{sha256}"


def read_link(path: Path) -> str | None:
    """sha256 that a link of ours names. One of any other form, which may lead anywhere, is as good as none."""
    try:
        return _parse_target(os.readlink(path))
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return None


def _parse_target(target: str) -> str | None:
    sha256 = os.path.basename(target)
    return sha256 if is_sha256(sha256) and target == target_of(sha256) else None


def _is_foreign(path: Path) -> bool:
    # One look: it may be removed, and be there again, at any time.
    try:
        return path.name not in FILES or _parse_target(os.readlink(path)) is None
    except OSError as error:
        return error.errno != errno.ENOENT
