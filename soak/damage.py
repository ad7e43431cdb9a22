"""Damaged checkpoints: each is refused in words, none is published, and the worker goes on."""

import random
import time
from collections import Counter
from pathlib import Path

from attnserve.jobs import locate_database
from soak.damaged import draw_damage
from soak.jobs import CHECKPOINT, Ended, Jobs, copy_checkpoint, count_tracebacks, find_leftovers, find_versions, working
from soak.verdict import Report, check_zero

NUM_CHECKPOINTS = 200
MODEL = "damaged"


def run(_: Path, work: Path, scale: float) -> Report:
    """Ask for the export of one after the other."""
    repository = work / "repository"
    repository.mkdir()
    jobs = Jobs(locate_database(repository))
    damages: Counter[str] = Counter()
    count = max(5, round(NUM_CHECKPOINTS * scale))
    wrong, seconds = [], []
    with working(repository, work) as worker:
        for seed in range(count):
            folder = copy_checkpoint(work / f"checkpoint-{seed}")
            name = draw_damage(folder, random.Random(seed))
            damages[name] += 1
            begin = time.monotonic()
            ended = jobs.wait(jobs.add(folder, MODEL, seed + 1))
            seconds.append(time.monotonic() - begin)
            if (fault := judge(ended)) is not None:
                wrong.append(f"seed {seed}, {name}: {fault}")
        is_alive = worker.poll() is None
        healthy = jobs.wait(jobs.add(CHECKPOINT, "healthy"))
    jobs.close()
    published = [version for version in find_versions(repository) if version.parent.name == MODEL]
    return Report(
        figures={
            "checkpoints": count,
            "kinds of damage": len(damages),
            "seconds to be refused, mean": sum(seconds) / count,
            "seconds to be refused, longest": max(seconds),
        },
        broken=[
            *check_zero("damaged checkpoints were published", len(published)),
            *check_zero("were not refused in words", len(wrong), "; ".join(wrong[:3])),
            *check_zero("things were left behind", len(left := find_leftovers(repository, work)), "; ".join(left[:3])),
            *check_zero("workers died", int(not is_alive)),
            *check_zero("healthy checkpoints were refused afterwards", int(not healthy.is_published)),
            *check_zero("tracebacks in the log", count_tracebacks(work)),
        ],
    )


def judge(ended: Ended) -> str | None:
    """Failed, with a reason that is not "unexpected"."""
    reason = str(ended.outcome.get("reason"))
    is_right = ended.outcome.get("state") == "failed" and reason.split(":")[0].endswith((".json", ".safetensors"))
    return None if is_right and "unexpected" not in reason else f"{ended.status} {ended.outcome}"
