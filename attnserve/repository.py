"""The repository: folders of bundles, `MODEL/VERSION`, and beside the versions `aliases.json`: which one is active.

It may change at any time, under the hands of others.
"""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType
from typing import Any

from attnserve.bundle import MANIFEST_FILE, BundleError, is_model_name, is_version
from attnserve.records import RecordError, read_text

ALIASES_FILE = "aliases.json"
MAX_ALIASES_BYTES = 1024 * 1024
# What is not there; every other error means that it cannot be known.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a look at a repository found."""

    versions: dict[str, tuple[int, ...]]
    """By model, oldest first."""
    unreadable: dict[str, str]
    """Why a model's folder cannot be read."""
    trouble: str | None = None
    """Why the repository itself cannot be read."""


class Repository:
    """A folder of bundles.

    Raises:
        BundleError: there is no such folder, it cannot be read, or it is a model or bundle itself.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise BundleError(f"repository: expected a folder of bundles, got {self.folder}")
        try:
            is_inside = (self.folder / MANIFEST_FILE).exists() or bool(find_versions(self.folder))
        except OSError as error:
            raise BundleError(f"repository: {_unreadable(self.folder, error)}") from None
        if is_inside:
            raise BundleError(
                f"repository: expected the folder above MODEL/VERSION, got a model or bundle: {self.folder}"
            )

    def find_models(self, known: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> Contents:
        """Models and their versions; temporary folders begin with a dot, and a model has a bundle at least.

        A folder that cannot be read is its model's affair alone. Of a repository that cannot be, what is known remains.

        Args:
            known: versions found earlier, which a model whose folder cannot be read now still has.
        """
        versions, unreadable = {}, {}
        try:
            folders = sorted(self.folder.iterdir())
        except OSError as error:
            trouble = f"the repository cannot be read: {error.strerror}"
            return Contents(versions=dict(known), unreadable={}, trouble=trouble)
        for folder in folders:
            name = folder.name
            if not is_model_name(name):
                continue
            try:
                found = tuple(find_versions(folder))
            except OSError as error:
                if error.errno in ABSENT:
                    continue
                unreadable[name] = _unreadable(folder, error)
                found = known.get(name, ())
            if found or name in unreadable:
                versions[name] = found
        return Contents(versions=versions, unreadable=unreadable)

    def choose_version(self, name: str, versions: tuple[int, ...]) -> int | None:
        """The version to serve: the active one that `aliases.json` names, else the newest. None is none at all.

        Raises:
            BundleError: `aliases.json` cannot be read, is malformed or names a version that is not there.
        """
        path = self.folder / name / ALIASES_FILE
        aliases = _read_aliases(path)
        if aliases is None:
            return versions[-1]
        active = aliases["active"]
        # Not `in` alone: True and 1.0 are in [1].
        if active is not None and (type(active) is not int or active not in versions):
            raise BundleError(f"{path}: active: expected null or one of {list(versions)}, got {active!r:.40}")
        return active

    def activate(self, name: str, version: int | None) -> None:
        """Make a version the active one, on every replica; None is none. Other aliases stay.

        Raises:
            BundleError: `aliases.json` is malformed, or cannot be read or written.
        """
        path = self.folder / name / ALIASES_FILE
        aliases = (_read_aliases(path) or {}) | {"active": version}
        temporary = path.with_name(f".{ALIASES_FILE}-{uuid.uuid4().hex}")
        try:
            # Replaced as a whole: replicas read it at any time.
            with temporary.open("x", encoding="utf-8") as file:
                file.write(json.dumps(aliases) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise BundleError(f"{path}: cannot be written: {error.strerror}") from None

    def locate(self, name: str, version: int) -> Path:
        """The folder of a bundle.

        Raises:
            BundleError: it is a link, or in one: what is served must lie in the repository.
        """
        folder = self.folder / name / str(version)
        for part in (folder.parent, folder):
            if part.is_symlink():
                raise BundleError(f"{part}: expected a folder of the repository, got a link")
        return folder

    def fingerprint(self, name: str, version: int) -> tuple[int, ...]:
        """Changes when the bundle is replaced or its manifest is written."""
        try:
            status = (self.folder / name / str(version) / MANIFEST_FILE).stat()
        except OSError:
            return ()
        return (status.st_ino, status.st_size, status.st_mtime_ns)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read: {error.strerror}"


def find_versions(folder: Path) -> list[int]:
    """Versions of a model, oldest first; 10 comes after 9.

    Raises:
        OSError: the folder cannot be read, is none or is not there.
    """
    names = (entry.name for entry in folder.iterdir() if is_version(entry.name))
    return sorted(int(name) for name in names if _may_be_bundle(folder / name))


def _may_be_bundle(folder: Path) -> bool:
    """Whether there is a manifest; also if that cannot be known, since whoever loads the bundle then says why."""
    try:
        return S_ISREG((folder / MANIFEST_FILE).stat().st_mode)
    except OSError as error:
        return error.errno not in ABSENT


def _read_aliases(path: Path) -> dict[str, Any] | None:
    """What stands in the file; None without one."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise BundleError(_unreadable(path, error)) from None
    try:
        aliases: Any = json.loads(read_text(path, MAX_ALIASES_BYTES))
        aliases["active"]
    except (RecordError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f'{path}: expected {{"active": version}}: {error!r:.200}') from None
    if not isinstance(aliases, dict):
        raise BundleError(f'{path}: expected {{"active": version}}, got a {type(aliases).__name__}')
    return aliases
