"""`attnserve serve` as a process of its own on a free port, and what the system says of it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnserve.service.engine import SHRINK_SECONDS
from benchmarks.reference import export_reference, name_reference

SERVE = ("-m", "attnserve", "serve")
START_S, STOP_S = 120, 60
# When nothing has come for a while, a service gives back what it needed. What is left is what requests left behind.
SETTLE_S = SHRINK_SECONDS + 2
VARIANT = "expressive"
REFERENCE = name_reference(VARIANT)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A service that answers. What it says of its process is read from /proc, which only Linux has."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    """Its stderr."""

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def resident_mib(self) -> float:
        """Memory that is really there."""
        return int(self._read_status("VmRSS").split()[0]) / 1024

    @property
    def num_threads(self) -> int:
        """Threads of the process."""
        return int(self._read_status("Threads"))

    @property
    def num_files(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def num_tracebacks(self) -> int:
        """Bugs that reached the log."""
        return self.log.read_text("utf-8", "replace").count("Traceback (most recent call last)")

    def stop(self) -> int:
        """Tell it to stop and wait; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: it does not; it has been killed.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _read_status(self, name: str) -> str:
        for line in Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines():
            label, _, value = line.partition(":")
            if label == name:
                return value.strip()
        raise LookupError(f"/proc/{self.process.pid}/status: expected {name}")


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def serving(
    repository: Path, work: Path, *flags: str, program: Sequence[str] = SERVE, port: int = 0
) -> Iterator[Server]:
    """A server that is ready.

    Args:
        repository: of bundles.
        work: a folder for its log, and for what tuning remembers.
        flags: of `attnserve serve`.
        program: what the interpreter runs.
        port: a free one unless given.

    Raises:
        RuntimeError: it did not become ready; with the end of its log.
    """
    port = port or find_port()
    log = work / f"server-{port}.log"
    given = ("--port", str(port), "--num-threads", "1", "--tuning-seconds", "2", "--tuning-cache", str(work / "tuning"))
    # What is measured here is the service alone.
    given += ("--export-worker", "off")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTNSERVE_")}
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, *program, str(repository), *given, *flags],
            stdout=stderr,
            stderr=stderr,
            env=environment | {"OMP_NUM_THREADS": "1"},
            # A group of its own: what is left of it can be found when it should be gone.
            start_new_session=True,
        )
    server = Server(port=port, process=process, log=log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def copy_models(repository: Path, names: Sequence[str], destination: Path) -> Path:
    """A repository of copies, for scenarios that change it.

    Raises:
        FileNotFoundError: a model is not there.
    """
    for name in names:
        version = max((int(entry.name) for entry in (repository / name).iterdir() if entry.name.isdecimal()), default=0)
        shutil.copytree(repository / name / str(version), destination / name / "1")
    return destination


def copy_reference(destination: Path) -> Path:
    """A repository with a copy of the reference model of the benchmarks, exported first if it never was."""
    return copy_models(export_reference(VARIANT), [REFERENCE], destination)


def find_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"{server.url}/readyz"),
        ):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server is not ready:\n{server.log.read_text('utf-8', 'replace')[-4000:]}")
