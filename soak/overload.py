"""Three times more than a service can bear: it answers nearly as much as it can, in time, and refuses the rest."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from attnserve.service.bench.client import open_client, raise_file_limit
from attnserve.service.bench.load import Load
from attnserve.service.bench.options import LoadOptions
from attnserve.service.bench.plan import draw_plan
from attnserve.service.bench.report import Summary, Window, format_table, summarise
from attnserve.service.bench.target import read_target
from attnserve.service.bench.timer import make_loop
from soak.server import REFERENCE, copy_models, copy_reference, serving
from soak.verdict import Report

SMALL = "nt-expressive"
TIMES = 3.0
DEADLINE_MS = 500.0
CLOSED_S, OPEN_S, WARMUP_S = 15.0, 30.0, 5.0
NUM_CONNECTIONS = 16
LENGTHS = "8-256"
LEAST_GOODPUT = 0.85
# Of the offered: let in, and late all the same.
MOST_LATE = 0.05


@dataclass(frozen=True, kw_only=True)
class Overload:
    """Capacity, and what was left of it."""

    capacity_per_s: float
    summary: Summary


def run(repository: Path, work: Path, scale: float) -> Report:
    """Overload the reference model, which computes, and a small one, where the client is as busy as the service."""
    reference = measure(copy_reference(work / "reference"), REFERENCE, work, scale)
    small = measure(copy_models(repository, [SMALL], work / "small"), SMALL, work, scale)
    # Of the small one the client is a good part of what is measured: figures, and no law.
    return Report(figures=describe(REFERENCE, reference) | describe(SMALL, small), broken=judge(reference))


def measure(repository: Path, name: str, work: Path, scale: float) -> Overload:
    """Capacity with a closed loop, then an open one at three times that."""
    with serving(repository, work, "--log-level", "warning", "--tuning-seconds", "10") as server:
        options = LoadOptions(
            url=server.url,
            model=name,
            num_connections=NUM_CONNECTIONS,
            duration_s=max(2.0, CLOSED_S * scale),
            warmup_s=max(1.0, WARMUP_S * scale),
            lengths=LENGTHS,
        )
        capacity_per_s = offer(options).answered_per_s
        flood = replace(
            options,
            num_connections=None,
            rate=TIMES * capacity_per_s,
            duration_s=max(5.0, OPEN_S * scale),
            deadline_ms=DEADLINE_MS,
            seed=1,
        )
        return Overload(capacity_per_s=capacity_per_s, summary=offer(flood))


def offer(options: LoadOptions) -> Summary:
    """One load, as `attnserve bench --url` sends it."""
    raise_file_limit()
    with asyncio.Runner(loop_factory=make_loop) as runner:
        client = runner.run(open_client(options))
        try:
            plan = draw_plan(options, read_target(runner.run(client.describe()), options.model))
            load = Load(client.ask, plan.bodies, timeout_s=options.timeout_s)
            if options.num_connections is None:
                runner.run(load.offer(plan.arrivals_s))
            else:
                runner.run(load.saturate(options.num_connections, options.seconds))
        finally:
            runner.run(client.close())
    summary = summarise(
        load.outcomes,
        Window(start_s=options.warmup_s, end_s=options.seconds),
        deadline_ms=options.deadline_ms,
        is_open=options.num_connections is None,
        client_cpu=0.0,
    )
    print(format_table(summary), flush=True)
    return summary


def judge(overload: Overload) -> list[str]:
    """Laws that were broken."""
    summary = overload.summary
    goodput, latency = summary.goodput_per_s or 0.0, summary.latency_ms
    broken = []
    if goodput < LEAST_GOODPUT * overload.capacity_per_s:
        least = f"at least {100 * LEAST_GOODPUT:.0f} % of it should be"
        broken.append(f"{goodput:.1f}/s in time of a capacity of {overload.capacity_per_s:.1f}/s, {least}")
    if latency is None or latency["p99"] > DEADLINE_MS:
        found = "nothing was answered" if latency is None else f"p99 of the answered is {latency['p99']:.0f} ms"
        broken.append(f"{found}, the deadline {DEADLINE_MS:.0f} ms")
    if summary.statuses.get("504", 0) > MOST_LATE * summary.num_offered:
        broken.append(f"{summary.statuses['504']} of {summary.num_offered} were let in and late")
    others = {status: number for status, number in summary.statuses.items() if status not in ("200", "429", "504")}
    if others or summary.errors:
        broken.append(f"expected 200, 429 and a few 504, got {others | dict(summary.errors)}")
    if summary.num_offered and not summary.statuses.get("429"):
        broken.append("nothing was refused: this was no overload")
    return broken


def describe(name: str, overload: Overload) -> dict[str, str | int | float]:
    """The figures of one model."""
    summary = overload.summary
    return {
        f"{name}, capacity /s": overload.capacity_per_s,
        f"{name}, offered /s": summary.offered_per_s,
        f"{name}, in time /s": summary.goodput_per_s or 0.0,
        f"{name}, in time, % of capacity": 100 * (summary.goodput_per_s or 0.0) / overload.capacity_per_s,
        f"{name}, p99 of the answered, ms": (summary.latency_ms or {}).get("p99", float("nan")),
        f"{name}, 429": summary.statuses.get("429", 0),
        f"{name}, 504": summary.statuses.get("504", 0),
        f"{name}, client": "; ".join(summary.faults) or "kept up",
    }
