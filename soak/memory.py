"""Memory under a load that never changes: what a service takes after an hour it took after its first minutes."""

import asyncio
from pathlib import Path

import numpy as np

from soak.crowd import Crowd
from soak.questions import Asked, describe_model, draw_mixed
from soak.server import REFERENCE, SETTLE_S, Server, copy_models, copy_reference, serving
from soak.verdict import Report, check_growth, check_zero, percent_change

MODEL = "nt-expressive"
NUM_SMALL, NUM_REFERENCE = 100_000, 5_000
NUM_PARTS = 10
MOST_GROWTH_PERCENT = 5.0
# The reference model's shortest; of the small one it is 1.
SHORTEST = 8


def run(repository: Path, work: Path, scale: float) -> Report:
    """Ask both models, and look at what memory each server has when it is idle after every tenth."""
    small = copy_models(repository, [MODEL], work / "small")
    reference = copy_reference(work / "reference")
    reports = []
    for folder, name, count, shortest in (
        (small, MODEL, NUM_SMALL, 1),
        (reference, REFERENCE, NUM_REFERENCE, SHORTEST),
    ):
        with serving(folder, work, "--log-level", "warning") as server:
            asked = describe_model(server.url, name)
            asked = Asked(name=name, vocabulary_size=asked.vocabulary_size, longest=asked.longest, shortest=shortest)
            reports.append(asyncio.run(_watch(server, asked, count, scale)))
    return Report(
        figures={name: value for report in reports for name, value in report.figures.items()},
        broken=[law for report in reports for law in report.broken],
    )


async def _watch(server: Server, asked: Asked, count: int, scale: float) -> Report:
    generator = np.random.default_rng(0)
    crowd = Crowd(server.port, lambda number: draw_mixed(asked, number, generator))
    resident = []
    for _ in range(NUM_PARTS):
        await crowd.ask(max(1, round(count * scale / NUM_PARTS)))
        await asyncio.sleep(SETTLE_S if scale >= 1 else 0)
        resident.append(server.resident_mib)
        print(f"  {asked.name}: {resident[-1]:.1f} MiB after {crowd.num_answers} answers", flush=True)
    await crowd.close()
    faults = check_zero(
        f"requests to {asked.name} failed", crowd.num_faults + crowd.num_refused, "; ".join(crowd.faults)
    )
    return judge(
        asked.name, crowd.num_answers, resident, [*faults, *check_zero("tracebacks", server.num_tracebacks)], scale
    )


def judge(name: str, num_answers: int, resident: list[float], faults: list[str], scale: float) -> Report:
    """What the memory after every tenth shows."""
    return Report(
        figures={
            f"{name}, answers": num_answers,
            f"{name}, resident MiB, by tenths": " ".join(f"{one:.0f}" for one in resident),
            f"{name}, growth %": percent_change(resident[0], resident[-1]),
        },
        broken=[
            *faults,
            *check_growth(f"{name}: memory", resident[0], resident[-1], most_percent=MOST_GROWTH_PERCENT, scale=scale),
        ],
    )
