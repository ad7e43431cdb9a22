"""`attnserve worker`: settings, folders, a name, a worker."""

import argparse
import importlib.util
import logging
import os
import signal
import socket
from pathlib import Path

from attnserve.bundle import BundleError
from attnserve.flags import add_flags, read_flags
from attnserve.jobs import locate_checkpoints, locate_database
from attnserve.logs import set_up_logs
from attnserve.machine import memory_limit
from attnserve.repository import Repository
from attnserve.worker.build import Builder
from attnserve.worker.database import open_database
from attnserve.worker.listening import Limits
from attnserve.worker.names import hold_name
from attnserve.worker.places import Places
from attnserve.worker.settings import SECRET, WorkerSettings
from attnserve.worker.worker import Worker

log = logging.getLogger(__name__)

# Imported by the process that builds, which would be the last to know.
NEEDED = ("torch", "onnx", "onnxscript")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the repository and a flag per setting."""
    parser.add_argument("repository", help="folder of bundles: REPOSITORY/model/version")
    add_flags(parser, WorkerSettings)


def run(parsed: argparse.Namespace) -> int:
    """Work until told to stop; returns the exit code."""
    settings = read_flags(parsed, WorkerSettings, secret=SECRET)
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    places = find_places(Path(parsed.repository), settings)
    set_up_logs(settings.log_level, settings.log_format)
    limits = Limits(seconds=settings.max_export_seconds, num_bytes=settings.max_export_bytes or memory_limit() * 3 // 4)
    with hold_name(places.checkpoints, settings.name, socket.gethostname()) as name:
        url = locate_database(places.repository, settings.database_url, settings.database_password_file)
        engine = open_database(url)
        described = {name: value for name, value in settings.model_dump().items() if name not in SECRET}
        text = ", ".join(f"{name}={value}" for name, value in described.items())
        log.info("settings: %s", text, extra={"settings": described})
        worker = Worker(
            engine=engine,
            url=url,
            name=name,
            places=places,
            builder=Builder(limits=limits),
            alive_file=Path(settings.alive_file) if settings.alive_file else None,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.stop())
        worker.run()
    return 0


def find_places(repository: Path, settings: WorkerSettings) -> Places:
    """The folders to work in.

    Raises:
        BundleError: there is no such repository, or it cannot be written.
        ValueError: the folder of checkpoints cannot be made.
    """
    folder = Repository(repository).folder.resolve()
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BundleError(f"repository: expected a folder that can be written, got {folder}")
    return Places(repository=folder, checkpoints=locate_checkpoints(folder, settings.checkpoints).absolute())
