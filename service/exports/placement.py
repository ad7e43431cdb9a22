"""Placement: from a request to a job in the queue, with a version that no bundle and no other job has."""

import os
from pathlib import Path

from attnserve.bundle import is_version
from attnserve.jobs import ExportOrder
from attnserve.repository import find_versions
from attnserve.service.exports.job import Job, Queue, Taken
from attnserve.service.exports.request import IDEMPOTENCY_KEY, ExportRequest
from attnserve.service.problems import Conflict, Invalid

# Times that another replica may take the version that has just been found free.
MAX_TRIES = 20


def find_placed(queue: Queue, job_id: str, asked: ExportRequest) -> Job | None:
    """The job that was made when this request came before.

    Args:
        queue: of jobs.
        job_id: that its idempotency key stands for.
        asked: the request.

    Raises:
        Invalid: another request came with that key.
    """
    job = queue.find(job_id)
    if job is not None and job.fingerprint != asked.fingerprint:
        message = f"expected a new key for a new request, got that of export {job_id}, which asked for something else"
        raise Invalid.about(IDEMPOTENCY_KEY, message)
    return job


def place(
    queue: Queue, repository: Path, asked: ExportRequest, files: dict[str, str], *, job_id: str, key: str | None
) -> Job:
    """Queue an export.

    Args:
        queue: of jobs.
        repository: where the bundle will be published.
        asked: the request.
        files: sha256 of the checkpoint's files, by name.
        job_id: of the new job. If there is one of that id, it is returned.
        key: name of the API key that asks.

    Raises:
        Conflict: that version exists, or another job is under way to it.
        Invalid: there is a job of that id which is another.
    """
    for _ in range(MAX_TRIES):
        # First those under way: what is published meanwhile is in the repository by the time that is looked at.
        under_way = {
            job.order.version: job.id
            for job in queue.find_active()
            if job.order is not None and job.order.model == asked.model
        }
        version = _choose_version(repository / asked.model, asked, under_way)
        order = ExportOrder(
            checkpoint=asked.checkpoint,
            files=files,
            model=asked.model,
            version=version,
            precision=asked.precision,
            portable=asked.portable,
            top_k=asked.top_k,
            activate=asked.activate,
        )
        try:
            queue.add(job_id, order, key=key, fingerprint=asked.fingerprint)
        except Taken:
            found = find_placed(queue, job_id, asked)
            if found is not None:
                return found
            continue
        job = queue.find(job_id)
        assert job is not None, "it has just been added"
        return job
    raise Conflict.about("version", f"expected one that stays free, got others' jobs to every one of {asked.model}")


def _choose_version(folder: Path, asked: ExportRequest, under_way: dict[int, str]) -> int:
    if asked.version is None:
        published = find_versions(folder) if folder.is_dir() else []
        version = max([0, *published, *under_way]) + 1
        if not is_version(str(version)):
            raise Conflict.about("version", f"{asked.model} has no number left after {version - 1}; expected a version")
        return version
    if asked.version in under_way:
        message = f"expected one that no job is under way to, got {asked.version}: export {under_way[asked.version]}"
        raise Conflict.about("version", message)
    # Whatever it is: nothing is ever overwritten.
    if os.path.lexists(folder / str(asked.version)):
        raise Conflict.about("version", f"expected one that {asked.model} does not have, got {asked.version}")
    return asked.version
