"""A store of checkpoints, and what tests do with it."""

import hashlib
import os

import pytest

from attnserve.checkpoints import Checkpoints
from attnserve.sweep import UNUSED_SECONDS
from attnserve.upload import Upload

WHOLE = {"config.json": "{}", "model.safetensors": "weights"}


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
