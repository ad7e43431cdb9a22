"""Two workers on PostgreSQL share 20 jobs; one is killed and never comes back, and an older release has left one."""

import time
from collections import Counter
from pathlib import Path

from soak.jobs import CHECKPOINT, Jobs, Reader, count_tracebacks, find_leftovers, find_versions, working
from soak.kills import check_count
from soak.postgres import serving_postgres
from soak.verdict import Report, check_zero

NUM_JOBS = 20


def run(_: Path, work: Path, scale: float) -> Report:
    """Queue, kill one of two, and count what was published."""
    repository = work / "repository"
    repository.mkdir()
    num_jobs = max(4, round(NUM_JOBS * scale))
    with serving_postgres() as server, Reader(repository) as reader:
        jobs = Jobs(server.url)
        queued = [jobs.add(CHECKPOINT, f"model-{number}") for number in range(num_jobs)]
        # Of a release that understood other orders, and of which no worker is left.
        old = jobs.add(CHECKPOINT, "old", format=0)
        begin = time.monotonic()
        flags = ("--database-url", server.url)
        with working(repository, work, *flags, name="first") as first, working(repository, work, *flags, name="second"):
            # Whatever it is at by then. A bundle is there before its job has ended, which may then be somebody else's.
            while len(find_versions(repository)) < num_jobs // 2 or not has_ended_one(jobs, queued, "first"):
                time.sleep(0.1)
            first.kill()
            first.wait()
            ended = [jobs.wait(job) for job in queued]
            refused = jobs.wait(old)
            seconds = time.monotonic() - begin
        # A worker sweeps at its start.
        with working(repository, work, *flags, name="third"):
            time.sleep(1)
        jobs.close()
    workers = Counter(one.worker for one in ended if one.is_published)
    unpublished = [f"{one.status} {one.outcome}" for one in ended if not one.is_published]
    return Report(
        figures={
            "jobs": num_jobs,
            "seconds": seconds,
            **{f"published by the {name}": number for name, number in sorted(workers.items()) if name},
            "the job of an older release": refused.outcome.get("reason", refused.status),
        },
        broken=[
            *check_zero("jobs were not published", len(unpublished), "; ".join(unpublished[:3])),
            *check_zero("versions were seen that were not whole", len(reader.faults), "; ".join(reader.faults[:3])),
            *check_zero("things were left behind", len(left := find_leftovers(repository, work)), "; ".join(left[:3])),
            *check_count(len(find_versions(repository)), num_jobs),
            *check_shared(workers),
            *check_refused(refused.outcome),
            *check_zero("tracebacks in the log", count_tracebacks(work)),
        ],
    )


def has_ended_one(jobs: Jobs, queued: list[str], worker: str) -> bool:
    """Whether a worker has ended any of the jobs; or nobody has any more to end."""
    ended = [jobs.find(job) for job in queued]
    return None not in ended or any(one is not None and one.worker == worker for one in ended)


def check_shared(workers: Counter[str | None]) -> list[str]:
    """The law that both have worked: else nothing was killed in the middle of anything."""
    return [] if workers["first"] and workers["second"] else [f"only {', '.join(map(str, workers))} had any job"]


def check_refused(outcome: dict[str, object]) -> list[str]:
    """The law that a job which no worker understands ends by name."""
    is_named = outcome.get("state") == "failed" and str(outcome.get("reason")).startswith("format: ")
    return [] if is_named else [f"the job of an older release ended with {outcome}"]
