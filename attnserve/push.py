"""`attnserve push`: a checkpoint goes to a service, as far as it is not there already."""

import argparse
import base64
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnserve.bundle import is_model_name
from attnserve.checkpoint_files import FILES, NEEDED, explain_pickle
from attnserve.exports import add_export_options, check_no_export_options, start
from attnserve.remote import Remote, RemoteError, add_remote_arguments, read_remote

PIECE_BYTES = 1024 * 1024
Report = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to be pushed."""

    path: Path
    sha256: str
    num_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve push`."""
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and model.safetensors")
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
    push(parsed.checkpoint, name, remote, report=print, progress=not parsed.quiet)
    print(f"{name} is at {remote.url}/v1/checkpoints/{name}", flush=True)
    return 0 if parsed.model is None else start(parsed, remote, name)


def push(folder: Path, name: str, remote: Remote, *, report: Callable[[str], object], progress: bool) -> None:
    """Make an uploaded checkpoint equal to a folder.

    Args:
        folder: with config.json, model.safetensors and what else a checkpoint may have.
        name: of the checkpoint on the service.
        remote: the service.
        report: told of each file.
        progress: whether to show a bar, where there is a terminal and tqdm.

    Raises:
        ValueError: the folder holds no checkpoint.
        RemoteError: the service cannot be reached, or refuses.
    """
    files = list_files(folder)
    sizes = {file: path.stat().st_size for file, path in files.items()}
    with _showing(f"hash {name}", sum(sizes.values()), progress) as seen:
        found = {file: hash_file(path, seen) for file, path in files.items()}
    there = list_remote(name, remote)
    changed = {file: local for file, local in found.items() if there.get(file) != local.sha256}
    with _showing(f"push {name}", sum(local.num_bytes for local in changed.values()), progress) as sent:
        for file, local in changed.items():
            upload(f"/v1/checkpoints/{name}/{file}", local, remote, sent)
    for file, local in found.items():
        report(f"{'uploaded' if file in changed else 'unchanged':9}  {file:17}  {local.num_bytes:>13,} bytes")
    for file in there.keys() - found.keys():
        remote.ask("DELETE", f"/v1/checkpoints/{name}/{file}")
        report(f"removed    {file}")


def list_files(folder: Path) -> dict[str, Path]:
    """Files of a checkpoint by name.

    Raises:
        ValueError: config.json or model.safetensors is missing.
    """
    files = {file: folder / file for file in FILES if (folder / file).is_file()}
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


@contextmanager
def _showing(what: str, num_bytes: int, progress: bool) -> Iterator[Report]:
    """A bar on a terminal; elsewhere, and where tqdm is missing, nothing."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda _: None
        return
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
    with tqdm(desc=what, total=num_bytes, disable=not (progress and sys.stderr.isatty()), **options) as bar:
        yield bar.update
