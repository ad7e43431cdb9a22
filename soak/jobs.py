"""Export jobs and their workers as processes of their own, and a watcher of what readers of the repository see."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, WorkflowSerializationFormat

from attnserve.bundle import BundleError, is_model_name, is_version, read_manifest, verify_files
from attnserve.jobs import APPLICATION, JOB_FORMAT, LOG, QUEUE, WORKFLOW, ExportOrder
from attnserve.records import to_json

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "nt-expressive"
START_S, END_S = 120.0, 900.0
TEMPORARY = "tmp"
ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended."""

    status: str
    """DBOS's word for it."""
    worker: str | None
    outcome: dict[str, Any]
    """An `attnserve.jobs.Outcome`; empty unless its workflow came to one."""

    @property
    def is_published(self) -> bool:
        """Whether its bundle is there."""
        return self.outcome.get("state") == "succeeded"


class Jobs:
    """A queue of jobs for one repository, as a service has it.

    Args:
        url: of its database.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        DBOS.migrate(url)
        self._client = DBOSClient(
            system_database_url=url, serializer=DBOSPortableJSONSerializer(), application_name=APPLICATION
        )

    def add(self, checkpoint: Path, model: str, version: int = 1, *, format: int = JOB_FORMAT) -> str:
        """Queue the export of a folder; returns the job."""
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()}
        order = ExportOrder(checkpoint=str(checkpoint), files=files, model=model, version=version)
        job = str(uuid.uuid4())
        self._client.enqueue(
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": job,
                "app_version": str(format),
                "deduplication_id": f"{model}/{version}",
                "serialization_type": WorkflowSerializationFormat.PORTABLE,
            },
            {**to_json(order), "format": format},
        )
        return job

    def wait(self, job: str) -> Ended:
        """How a job ended.

        Raises:
            TimeoutError: it does not.
        """
        end = time.monotonic() + END_S
        while (ended := self.find(job)) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"expected job {job} to end within {END_S:g} s")
            time.sleep(0.1)
        return ended

    def find(self, job: str) -> Ended | None:
        """How a job ended; None if it has not."""
        (status,) = self._client.list_workflows(workflow_ids=[job])
        if status.status not in ENDED:
            return None
        return Ended(status=status.status, worker=status.executor_id, outcome=status.output or {})

    def find_step(self, job: str) -> str | None:
        """The step that a job has told of last."""
        steps = [line["step"] for line in self._read_log(job)]
        return steps[-1] if steps else None

    def _read_log(self, job: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(Exception):
            for line in self._client.read_stream(job, LOG, timeout_seconds=0.2):
                lines.append(line)
        return lines

    def close(self) -> None:
        """Ask nothing any more."""
        self._client.destroy()


@contextlib.contextmanager
def working(repository: Path, work: Path, *flags: str, name: str = "worker") -> Iterator[subprocess.Popen[bytes]]:
    """`attnserve worker` as a process of its own, ready; told to stop at the end.

    Args:
        repository: of bundles.
        work: a folder for its log, `NAME.log`.
        flags: of `attnserve worker`.
        name: its name.
    """
    log = work / f"{name}.log"
    begin = log.stat().st_size if log.exists() else 0
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ATTNSERVE_")}
    # Its own: what is left there is left by it.
    (work / TEMPORARY).mkdir(exist_ok=True)
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(work / TEMPORARY)}
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "attnserve", "worker", str(repository), "--name", name, *flags],
            stdout=stderr,
            stderr=stderr,
            env=environment,
        )
    try:
        end = time.monotonic() + START_S
        while b": ready" not in log.read_bytes()[begin:]:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the worker is not ready:\n{log.read_text('utf-8', 'replace')[-4000:]}")
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


class Reader:
    """Looks at a repository all the time, as a service does, and at every version that appears: it must be whole."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._seen: set[Path] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.faults: list[str] = []
        self.num_looks = 0

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopping.wait(0.005):
            self.num_looks += 1
            for folder in find_versions(self._repository):
                if folder not in self._seen:
                    self._seen.add(folder)
                    try:
                        verify_files(folder, read_manifest(folder))
                    except (BundleError, OSError) as error:
                        self.faults.append(str(error))


def find_versions(repository: Path) -> list[Path]:
    """Every folder that a service would take for a version, whole or not."""
    found = []
    for model in repository.iterdir():
        if is_model_name(model.name) and model.is_dir():
            with contextlib.suppress(FileNotFoundError):
                found += [entry for entry in model.iterdir() if is_version(entry.name)]
    return found


def find_leftovers(repository: Path, work: Path) -> list[str]:
    """What jobs have left that have all ended: bundles that were not published, copies of checkpoints, other files."""
    copies = repository / ".attnserve" / "checkpoints" / ".work"
    return [str(path) for path in (*repository.glob("*/.tmp-*"), *copies.glob("*"), *(work / TEMPORARY).glob("*"))]


def count_tracebacks(work: Path) -> int:
    """Bugs that reached a worker's log."""
    return sum(
        log.read_text("utf-8", "replace").count("Traceback (most recent call last)") for log in work.glob("*.log")
    )


def copy_checkpoint(destination: Path) -> Path:
    """A checkpoint to be changed."""
    return Path(shutil.copytree(CHECKPOINT, destination))
