"""The companion: a worker beside the service, so that exports need nothing else running. It never outlives it."""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attnserve.flags import ENV_PREFIX
from attnserve.service.settings import Settings

# All that the extra `export` brings and a worker cannot do without.
NEEDED = ("torch", "onnx", "onnxscript", "dbos")
# Ends with the process whose id stands last, and lets predictions go first.
ENTRY = """
import os, sys
from attnserve.lifeline import die_with
die_with(int(sys.argv.pop()))
os.nice(10)
from attnserve.cli import main
sys.exit(main(sys.argv[1:]))
"""
# A worker that ends is started again after this long, and then twice as long each time; one that has run for a while
# did not end because it could not run.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
# Told to stop, it gives back the job that it has.
STOP_SECONDS = 10.0

log = logging.getLogger(__name__)


class Companion:
    """A process that runs as long as this one: started again when it ends, stopped with the service.

    Args:
        command: of the process, whose parent's id is put behind it. It is to die with that parent.
        environment: variables of the process.
        clock: seconds, for how long it ran.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._command = command
        self._environment = environment
        self._clock = clock
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the process when the thread ends that has started it, so one thread does, and waits for it.
        self._thread = threading.Thread(target=self._run, name="companion", daemon=True)

    def start(self) -> None:
        """Start the process, and keep it running; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the process: by asking, then by force. Nothing happens if it was never started."""
        with self._changing:
            self._stopping.set()
            process = self._process
        if process is not None:
            # What it has started it ends itself, and so it knows that this was no accident.
            process.terminate()
            self._thread.join(STOP_SECONDS)
        if process is not None and self._thread.is_alive():
            log.warning("the worker did not stop within %g s, and is killed", STOP_SECONDS)
            process.kill()
            self._thread.join()

    def _run(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while not self._stopping.is_set():
            begin = self._clock()
            exit_code = self._run_once()
            if exit_code is None or self._stopping.is_set():
                return
            delay = FIRST_RETRY_SECONDS if self._clock() - begin > LAST_RETRY_SECONDS else delay
            log.error("the worker ended with exit code %d; it is started again in %g s", exit_code, delay)
            self._stopping.wait(delay)
            delay = min(2 * delay, LAST_RETRY_SECONDS)

    def _run_once(self) -> int | None:
        """Run the process to its end; None if the service stops."""
        with self._changing:
            if self._stopping.is_set():
                return None
            # A group of its own: what it starts is ended with it, and Ctrl-C in a terminal is the service's to obey.
            self._process = subprocess.Popen(
                [*self._command, str(os.getpid())], env=self._environment, stdin=subprocess.DEVNULL, process_group=0
            )
        log.info("the worker runs, as process %d", self._process.pid)
        return self._process.wait()


def find_companion(repository: Path, settings: Settings) -> Companion | None:
    """The worker that settings want beside the service.

    Raises:
        ModuleNotFoundError: it must be there, and the extra `export` is missing.
    """
    if settings.export_worker == "off":
        return None
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if settings.export_worker == "auto":
        if missing or settings.database_url or not os.access(repository, os.W_OK | os.X_OK):
            return None
    elif missing:
        raise ModuleNotFoundError(f"No module named {missing[0]!r}", name=missing[0])
    return Companion(make_command(repository, settings), make_environment(settings))


def make_command(repository: Path, settings: Settings) -> list[str]:
    """The command line of the worker of a service."""
    flags = ["--log-level", settings.log_level, "--log-format", settings.log_format]
    flags += ["--checkpoints", settings.checkpoints] if settings.checkpoints else []
    # Without the working directory in its path, which may have a folder `models` that is not ours.
    return [sys.executable, "-P", "-c", ENTRY, "worker", str(repository), *flags]


def make_environment(settings: Settings) -> dict[str, str]:
    """Variables of the worker: everybody may read a command line, and the database's URL may hold a password."""
    given = {"DATABASE_URL": settings.database_url, "DATABASE_PASSWORD_FILE": settings.database_password_file}
    return {**os.environ, **{f"{ENV_PREFIX}{name}": value for name, value in given.items()}}
