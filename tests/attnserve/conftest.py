"""A committed bundle and a store of checkpoints, and what tests do with them."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from attnserve import bundle
from attnserve.checkpoints import Checkpoints
from attnserve.sweep import UNUSED_SECONDS
from attnserve.upload import Upload

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
WHOLE = {"config.json": "{}", "model.safetensors": "weights"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a small bundle, to be spoiled."""
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def rehash(folder: Path) -> None:
    """Make a changed bundle one that was made like this."""
    manifest = bundle.read_manifest(folder)
    manifest.files.clear()
    manifest.files.update(bundle.hash_files(folder))
    bundle.write_manifest(folder, manifest)


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "new" / "checkpoints")


def put(store, name: str, **contents: str) -> None:
    for file, content in contents.items():
        upload = Upload(store)
        upload.open()
        upload.write(content.encode())
        upload.commit(name, file)


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def everything_in(store) -> list[str]:
    return sorted(path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*"))


def age(store, *contents: str, seconds: float = UNUSED_SECONDS + 1) -> None:
    for content in contents:
        path = store.name_blob(hash_text(content))
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def now_of(store) -> float:
    return store.folder.stat().st_mtime
