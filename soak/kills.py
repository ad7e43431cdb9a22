"""A worker is killed at any moment of an export and started again: the job ends, and nobody ever sees half a bundle."""

import random
import time
from collections import Counter
from pathlib import Path

from attnserve.jobs import locate_database
from soak.jobs import CHECKPOINT, Jobs, Reader, count_tracebacks, find_leftovers, find_versions, working
from soak.verdict import Report, check_zero

NUM_KILLS = 30
MODEL = "killed"


def run(_: Path, work: Path, scale: float) -> Report:
    """Kill and find out what became of each job."""
    repository = work / "repository"
    repository.mkdir()
    jobs = Jobs(locate_database(repository))
    generator = random.Random(0)
    steps: Counter[str] = Counter()
    num_kills, unpublished = max(2, round(NUM_KILLS * scale)), []
    with Reader(repository) as reader:
        seconds = _export_undisturbed(jobs, repository, work)
        for number in range(num_kills):
            with working(repository, work) as worker:
                job = jobs.add(CHECKPOINT, MODEL, number + 2)
                # Spread over the whole export, and a little beyond its end.
                time.sleep(seconds * 1.05 * (number + generator.random()) / num_kills)
                worker.kill()
                worker.wait()
            steps[jobs.find_step(job) or "queued"] += 1
            with working(repository, work):
                ended = jobs.wait(job)
            if not ended.is_published:
                unpublished.append(f"{ended.status} {ended.outcome}")
        # The last one stops after its job has ended, and a worker sweeps at its start.
        with working(repository, work):
            time.sleep(1)
    jobs.close()
    versions = find_versions(repository)
    return Report(
        figures={
            "kills": num_kills,
            "seconds of an export": seconds,
            **{f"killed in {step}": number for step, number in steps.items()},
            "published": len(versions),
            "looks at the repository": reader.num_looks,
        },
        broken=[
            *check_zero("jobs were not published", len(unpublished), "; ".join(unpublished[:3])),
            *check_zero("versions were seen that were not whole", len(reader.faults), "; ".join(reader.faults[:3])),
            *check_zero("things were left behind", len(left := find_leftovers(repository, work)), "; ".join(left[:3])),
            *check_count(len(versions), num_kills + 1),
            *check_zero("tracebacks in the log", count_tracebacks(work)),
        ],
    )


def check_count(num_versions: int, num_jobs: int) -> list[str]:
    """The law that every job is published once."""
    wrong = num_versions != num_jobs
    return [f"{num_versions} versions were published by {num_jobs} jobs"] if wrong else []


def _export_undisturbed(jobs: Jobs, repository: Path, work: Path) -> float:
    """Seconds from the order to the end."""
    with working(repository, work):
        begin = time.monotonic()
        jobs.wait(jobs.add(CHECKPOINT, MODEL, 1))
        return time.monotonic() - begin
