"""The repository: folders of bundles, `MODEL/VERSION`, and beside the versions `aliases.json`: which one is active.

It may change at any time, under the hands of others.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from attnserve.bundle import MANIFEST_FILE, BundleError, is_model_name, is_version
from attnserve.records import RecordError, read_text

ALIASES_FILE = "aliases.json"
MAX_ALIASES_BYTES = 1024 * 1024


class Repository:
    """A folder of bundles.

    Raises:
        BundleError: there is no such folder, or it is a model or bundle itself.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise BundleError(f"repository: expected a folder of bundles, got {self.folder}")
        if (self.folder / MANIFEST_FILE).exists() or find_versions(self.folder):
            raise BundleError(
                f"repository: expected the folder above MODEL/VERSION, got a model or bundle: {self.folder}"
            )

    def find_models(self) -> dict[str, tuple[int, ...]]:
        """Versions by model, oldest first; temporary folders begin with a dot, and a model has a bundle at least.

        Raises:
            OSError: the repository cannot be read.
        """
        folders = (entry for entry in sorted(self.folder.iterdir()) if is_model_name(entry.name) and entry.is_dir())
        versions = {folder.name: tuple(find_versions(folder)) for folder in folders}
        return {name: found for name, found in versions.items() if found}

    def choose_version(self, name: str, versions: tuple[int, ...]) -> int | None:
        """The version to serve: the active one that `aliases.json` names, else the newest. None is none at all.

        Raises:
            BundleError: `aliases.json` is malformed or names a version that is not there.
        """
        path = self.folder / name / ALIASES_FILE
        if not path.exists():
            return versions[-1]
        active = _read_aliases(path)["active"]
        # Not `in` alone: True and 1.0 are in [1].
        if active is not None and (type(active) is not int or active not in versions):
            raise BundleError(f"{path}: active: expected null or one of {list(versions)}, got {active!r:.40}")
        return active

    def activate(self, name: str, version: int | None) -> None:
        """Make a version the active one, on every replica; None is none. Other aliases stay.

        Raises:
            BundleError: `aliases.json` is malformed, or cannot be written.
        """
        path = self.folder / name / ALIASES_FILE
        aliases = (_read_aliases(path) if path.exists() else {}) | {"active": version}
        temporary = path.with_name(f".{ALIASES_FILE}-{uuid.uuid4().hex}")
        try:
            # Replaced as a whole: replicas read it at any time.
            with temporary.open("x", encoding="utf-8") as file:
                file.write(json.dumps(aliases) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
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


def find_versions(folder: Path) -> list[int]:
    """Versions of a model, oldest first; 10 comes after 9."""
    names = (entry.name for entry in folder.iterdir() if is_version(entry.name))
    return sorted(int(name) for name in names if (folder / name / MANIFEST_FILE).is_file())


def _read_aliases(path: Path) -> dict[str, Any]:
    try:
        aliases: Any = json.loads(read_text(path, MAX_ALIASES_BYTES))
        aliases["active"]
    except (RecordError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f'{path}: expected {{"active": version}}: {error!r:.200}') from None
    if not isinstance(aliases, dict):
        raise BundleError(f'{path}: expected {{"active": version}}, got a {type(aliases).__name__}')
    return aliases
