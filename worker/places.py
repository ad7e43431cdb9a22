"""Where a job keeps what: its copies of the checkpoint, and the bundle until it is published."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attnserve.bundle import is_model_name
from attnserve.jobs import ExportOrder
from attnserve.publish import TEMPORARY

WORK_FOLDER = ".work"
JOB = r"[A-Za-z0-9_-]{1,64}"
# There is a dot in the name of no other temporary folder: exports by hand use TEMPORARY and 32 digits.
ATTEMPT = re.compile(rf"{re.escape(TEMPORARY)}(?P<job>{JOB})\.[0-9a-f]{{8}}")


@dataclass(frozen=True, kw_only=True)
class Places:
    """The folders that workers and services share."""

    repository: Path
    checkpoints: Path

    def work(self, job: str) -> Path:
        """Of a job's copies of its checkpoint, and of what its process makes beside."""
        return self.checkpoints / WORK_FOLDER / job

    def version(self, order: ExportOrder) -> Path:
        """Where the bundle is published."""
        return self.repository / order.model / str(order.version)

    def new_attempt(self, order: ExportOrder, job: str) -> Path:
        """A name beside the bundle's place that no other attempt uses.

        A worker that was taken for dead may go on writing while another does its job: were they to share a folder, one
        could publish what the other has half written.
        """
        return self.repository / order.model / f"{TEMPORARY}{job}.{secrets.token_hex(4)}"

    def find_attempts(self, job: str) -> list[Path]:
        """Bundles of a job, whole or not, that are not published."""
        return [path for path in self._iterate_attempts() if _job_of(path) == job]

    def find_jobs(self) -> set[str]:
        """Every job that has left anything anywhere."""
        works = self.checkpoints / WORK_FOLDER
        names = {entry.name for entry in works.iterdir()} if works.is_dir() else set()
        jobs = {name for name in names if re.fullmatch(JOB, name)}
        return jobs | {_job_of(path) for path in self._iterate_attempts()}

    def clear(self, job: str) -> None:
        """Remove all that a job has left but the version it published; the model's folder too if nothing is in it."""
        shutil.rmtree(self.work(job), ignore_errors=True)
        for path in self.find_attempts(job):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.parent.rmdir()

    def find_empty_models(self) -> list[Path]:
        """Folders of models in which there is nothing: of first exports that failed."""
        return [folder for folder in self._iterate_models() if not any(folder.iterdir())]

    def last_change(self, job: str) -> float:
        """When a job's folders were written to, in seconds since 1970; 0 if there are none."""
        found = [path.stat().st_mtime for path in (self.work(job), *self.find_attempts(job)) if path.exists()]
        return max(found, default=0.0)

    def _iterate_attempts(self) -> Iterator[Path]:
        for model in self._iterate_models():
            yield from (path for path in model.glob(f"{TEMPORARY}*") if ATTEMPT.fullmatch(path.name))

    def _iterate_models(self) -> Iterator[Path]:
        for folder in self.repository.iterdir():
            if is_model_name(folder.name) and folder.is_dir() and not folder.is_symlink():
                yield folder


def _job_of(attempt: Path) -> str:
    match = ATTEMPT.fullmatch(attempt.name)
    assert match is not None
    return match["job"]
