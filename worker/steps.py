"""The steps of a job but the building: each begins by undoing what an earlier attempt may have left of it.

So each may be repeated, after a crash at any moment. Nothing here knows of the queue.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from attnserve.bundle import MANIFEST_FILE, BundleError, hash_file, read_manifest, verify_files
from attnserve.checkpoint_files import FILES, WEIGHTS_FILE
from attnserve.checkpoints import Checkpoints, UnknownError, is_sha256
from attnserve.jobs import ExportOrder
from attnserve.publish import ExportError, check_destination, publish
from attnserve.repository import ALIASES_FILE, Repository, find_versions
from attnserve.weights import WeightsError, check_head
from attnserve.worker.places import Places

CHUNK_BYTES = 4 * 1024 * 1024
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Check = Callable[[], None]
"""Called often; raises if the job is to go on no more."""


class StepError(ValueError):
    """A job cannot go on; the message says why to whoever asked for it."""


def fetch(order: ExportOrder, job: str, places: Places, check: Check) -> None:
    """Put exactly the files that were pinned when the job was asked for into its work folder.

    Raises:
        StepError: a file is gone, has changed since, or is none of a checkpoint's; the version exists; or there is no
            room for a copy.
    """
    work = places.work(job)
    shutil.rmtree(work, ignore_errors=True)
    try:
        # Others may have published since the order was taken, and building takes minutes.
        check_destination(places.version(order))
    except ExportError as error:
        raise StepError(str(error)) from None
    for name, sha256 in order.files.items():
        if name not in FILES or not is_sha256(sha256):
            raise StepError(f"files: expected a sha256 for some of {', '.join(FILES)}, got {name[:40]!r}")
    work.mkdir(parents=True)
    for name, sha256 in order.files.items():
        try:
            if order.is_path:
                found = _copy(Path(order.checkpoint) / name, work / name, check)
            else:
                found = _link(Checkpoints(places.checkpoints).locate_blob(sha256), work / name, check)
        except UnknownError:
            raise StepError(f"checkpoint: {name}: the upload is gone; upload it again") from None
        except WeightsError as error:
            raise StepError(f"{name}: not a safetensors file: {error}") from None
        except OSError as error:
            fault = "cannot be read any more" if error.errno not in NO_ROOM else f"cannot be copied to {work}"
            raise StepError(f"checkpoint: {name}: {fault}: {error.strerror or error}") from None
        if found != sha256:
            raise StepError(f"checkpoint: {name}: expected sha256 {sha256} as when it was asked for, got {found}")


def publish_bundle(order: ExportOrder, attempt: Path, manifest_sha256: str, places: Places) -> None:
    """Make a proven bundle the version that was ordered; if it is already, an earlier attempt has.

    Raises:
        StepError: the version is there and another one, or the bundle is gone or no more what was proven.
    """
    place = places.version(order)
    if _is_published(place, manifest_sha256):
        return
    try:
        check_destination(place)
        # Hours may have passed, and a host have lost its power: what was proven is what these hashes say.
        if hash_file(attempt / MANIFEST_FILE) != manifest_sha256:
            raise BundleError(f"{attempt / MANIFEST_FILE}: expected the one that was verified, got another")
        verify_files(attempt, read_manifest(attempt))
        if not order.activate:
            _hold_active(Repository(places.repository), order.model)
        publish(attempt, place)
    except (ExportError, BundleError, OSError) as error:
        # A worker that was taken for dead may have published it in this very moment.
        if not _is_published(place, manifest_sha256):
            raise StepError(str(error) if isinstance(error, ValueError) else f"destination: {error}") from None


def activate_version(order: ExportOrder, places: Places) -> None:
    """Make the version the active one on every replica, unless it is, or is to stay inactive.

    Raises:
        StepError: `aliases.json` is malformed or cannot be written, or the version is gone.
    """
    if not order.activate:
        return
    versions = tuple(find_versions(places.repository / order.model))
    if order.version not in versions:
        raise StepError(f"version: {order.version} was published, and is gone")
    repository = Repository(places.repository)
    try:
        # Without aliases the newest is served, and goes on being so.
        if repository.choose_version(order.model, versions) == order.version:
            return
    except BundleError:
        # It names a version that is not there. If it is malformed, the next line says so.
        pass
    try:
        repository.activate(order.model, order.version)
    except BundleError as error:
        raise StepError(str(error)) from None


def _hold_active(repository: Repository, model: str) -> None:
    """Name what is served now: without a name, it would be the newest."""
    folder = repository.folder / model
    if not (folder / ALIASES_FILE).exists():
        repository.activate(model, max(find_versions(folder), default=None))


def _is_published(place: Path, manifest_sha256: str) -> bool:
    try:
        return hash_file(place / MANIFEST_FILE) == manifest_sha256
    except OSError:
        return False


def _link(source: Path, target: Path, check: Check) -> str:
    """The same content under another name, which stays when the upload is removed; its sha256."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Not every file system can.
        return _copy(source, target, check)
    return _read(target, check)


def _copy(source: Path, target: Path, check: Check) -> str:
    """Copy a plain file; returns its sha256.

    Raises:
        WeightsError: it would be the weights, and is not.
        OSError: it cannot be read, or there is no room.
    """
    if not source.is_file():
        raise FileNotFoundError(2, "no such file")
    if target.name == WEIGHTS_FILE:
        # Before gigabytes of something else are written.
        check_head(source)
    with target.open("xb") as file:
        return _read(source, check, write=file.write)


def _read(path: Path, check: Check, write: Callable[[bytes], object] = lambda _: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            check()
            digest.update(chunk)
            write(chunk)
    return digest.hexdigest()
