"""`attnserve push`: a checkpoint goes to a service, as far as it is not there already."""

import argparse
import base64
import functools
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from attnserve.bundle import is_model_name
from attnserve.checkpoint_files import FILES, INDEX_FILE, NEEDED, WEIGHTS_FILE, explain_pickle
from attnserve.exports import add_export_options, check_no_export_options, start
from attnserve.progress import Report, Watch, show_bytes
from attnserve.remote import Remote, RemoteError, add_remote_arguments, read_remote
from attnserve.shards import join_shards, list_shards

PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to be pushed."""

    path: Path
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A checkpoint that a service has now."""

    name: str
    files: dict[str, LocalFile]
    """By name."""
    uploaded: tuple[str, ...]
    """Those that were not there, or were others."""
    removed: tuple[str, ...]
    """Those that the folder has not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve push`."""
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and model.safetensors, or its shards")
    parser.add_argument("--name", help="what it is called there (default: the name of the folder)")
    add_remote_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--export", dest="model", metavar="MODEL[/VERSION]", help="export it then, to the next version if none is given"
    )
    add_export_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Push, and print what became of each file.

    Raises:
        ValueError: no checkpoint, or an option that is wrong.
        RemoteError: the service cannot be reached, or refuses.
    """
    name = parsed.checkpoint.resolve().name if parsed.name is None else parsed.name
    if not is_model_name(name):
        raise ValueError(f"--name: expected letters, digits, '.', '_' and '-', a letter or digit first, got {name!r}")
    remote = read_remote(parsed)
    if parsed.model is None:
        check_no_export_options(parsed)
    watch = functools.partial(show_bytes, is_shown=not parsed.quiet and sys.stderr.isatty())
    pushed = push(parsed.checkpoint, name, remote, watch=watch)
    for file, local in pushed.files.items():
        what = "uploaded" if file in pushed.uploaded else "unchanged"
        print(f"{what:9}  {file:17}  {local.num_bytes:>13,} bytes")
    for file in pushed.removed:
        print(f"removed    {file}")
    print(f"{name} is at {remote.url}/v1/checkpoints/{name}", flush=True)
    return 0 if parsed.model is None else start(parsed, remote, name)


def push(folder: Path, name: str, remote: Remote, *, watch: Watch) -> Pushed:
    """Make an uploaded checkpoint equal to a folder.

    Args:
        folder: with config.json, model.safetensors and what else a checkpoint may have. Weights in several files are
            written into one first, which takes as much room again in the folder for temporary files.
        name: of the checkpoint on the service.
        remote: the service.
        watch: opened with what is done ("hash" or "push", and the name) and its bytes; told of those that are done.

    Raises:
        ValueError: the folder holds no checkpoint.
        RemoteError: the service cannot be reached, or refuses.
    """
    is_sharded = not (folder / WEIGHTS_FILE).exists() and (folder / INDEX_FILE).is_file()
    with tempfile.TemporaryDirectory() if is_sharded else nullcontext() as scratch:
        if scratch is None:
            return _send(list_files(folder), name, remote, watch)
        whole = Path(scratch) / WEIGHTS_FILE
        with _reading(folder):
            join_shards(list_shards(folder), whole)
        return _send(list_files(folder, whole), name, remote, watch)


def _send(files: dict[str, Path], name: str, remote: Remote, watch: Watch) -> Pushed:
    sizes = {file: path.stat().st_size for file, path in files.items()}
    with watch(f"hash {name}", sum(sizes.values())) as seen:
        found = {file: hash_file(path, seen) for file, path in files.items()}
    there = list_remote(name, remote)
    changed = {file: local for file, local in found.items() if there.get(file) != local.sha256}
    with watch(f"push {name}", sum(local.num_bytes for local in changed.values())) as sent:
        for file, local in changed.items():
            upload(f"/v1/checkpoints/{name}/{file}", local, remote, sent)
    removed = tuple(there.keys() - found.keys())
    for file in removed:
        remote.ask("DELETE", f"/v1/checkpoints/{name}/{file}")
    return Pushed(name=name, files=found, uploaded=tuple(changed), removed=removed)


def list_files(folder: Path, weights: Path | None = None) -> dict[str, Path]:
    """Files of a checkpoint by name; its `weights` may stand elsewhere.

    Raises:
        ValueError: config.json or model.safetensors is missing.
    """
    places = {file: folder / file for file in FILES} | ({} if weights is None else {WEIGHTS_FILE: weights})
    files = {file: place for file, place in places.items() if place.is_file()}
    for file in NEEDED:
        if file not in files:
            hint = explain_pickle(path.name for path in folder.iterdir()) if folder.is_dir() else ""
            raise ValueError(f"checkpoint: expected {file} in {folder}, got none{hint}")
    return files


def hash_file(path: Path, report: Report) -> LocalFile:
    """What a file is; `report` is told of the bytes that have been read.

    Raises:
        ValueError: it cannot be read.
    """
    digest, num_bytes = hashlib.sha256(), 0
    with _reading(path), path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
            report(len(piece))
    return LocalFile(path=path, sha256=digest.hexdigest(), num_bytes=num_bytes)


def list_remote(name: str, remote: Remote) -> dict[str, str]:
    """sha256 by file of an uploaded checkpoint; empty if there is none of that name.

    Raises:
        RemoteError: the service cannot be reached, or refuses.
    """
    try:
        document = remote.ask("GET", f"/v1/checkpoints/{name}").document
        return {file: stored["sha256"] for file, stored in document["files"].items()}
    except RemoteError as error:
        if error.status == 404:
            return {}
        raise
    except (KeyError, TypeError, AttributeError):
        raise RemoteError(f"--url: expected a service of attnserve at {remote.url}, got another answer") from None


def upload(path: str, local: LocalFile, remote: Remote, report: Report) -> None:
    """Send a file; the service compares it with the hash that comes with it.

    Raises:
        ValueError: it cannot be read.
        RemoteError: the service cannot be reached, or refuses.
    """
    digest = base64.b64encode(bytes.fromhex(local.sha256)).decode()
    with _reading(local.path):
        file = local.path.open("rb")
    with file:
        remote.upload(path, file, local.num_bytes, headers={"Content-Digest": f"sha-256=:{digest}:"}, report=report)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"checkpoint: {path}: expected a file that can be read, got: {error.strerror}") from None
