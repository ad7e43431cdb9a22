"""What a load found: counts, rates and percentiles, and whether the client itself was the slow one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attnserve.service.bench.load import Outcome

# Per mille, so that ranks are computed in integers: 99.9 % of 1000 is not 999 in floating point.
PERCENTILES = {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999, "max": 1000}
ANSWERED = 200
# Lags that are the operating system's; beyond them a lag may be so much of the latency beside it.
LAG_ALLOWED_MS = {"p50": 1.0, "p99": 5.0}
LAG_SHARE = 0.1
# Of one core, which is all that an event loop has.
CPU_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which part of a run is measured; seconds since it began."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end_s - self.start_s

    def holds(self, moment_s: float) -> bool:
        """Whether a moment is in it."""
        return self.start_s <= moment_s < self.end_s


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of the requests that were due in the window; percentiles in milliseconds by name."""

    window_s: float
    num_offered: int
    offered_per_s: float
    num_answered: int
    """With 200."""
    answered_per_s: float
    """Answers of 200 that came in during the window, whenever they were due: of a server that falls behind, what it
    manages, not what it is given."""
    num_within_deadline: int | None
    goodput_per_s: float | None
    """200 within the deadline, counted from when they were due; None without a deadline."""
    statuses: Mapping[str, int]
    errors: Mapping[str, int]
    latency_ms: Mapping[str, float] | None
    """Of answers with 200; None where there is none, as below."""
    server_ms: Mapping[str, Mapping[str, float]]
    """What the server says it needed, by name, of the same answers."""
    lag_ms: Mapping[str, float] | None
    """How late requests were sent; None of a closed loop, which has no schedule."""
    client_cpu: float
    """Cores that this process used."""
    faults: tuple[str, ...]
    """Why the figures say more about this client than about the server."""


def summarise(
    outcomes: Iterable[Outcome], window: Window, *, deadline_ms: float | None, is_open: bool, client_cpu: float
) -> Summary:
    """Count, and take percentiles.

    Args:
        outcomes: of the whole run.
        window: what is measured of it.
        deadline_ms: of goodput.
        is_open: whether there was a schedule to be late for.
        client_cpu: cores this process used.
    """
    outcomes = list(outcomes)
    due = [outcome for outcome in outcomes if window.holds(outcome.due_s)]
    answered = [outcome for outcome in due if outcome.status == ANSWERED]
    num_ended = sum(outcome.status == ANSWERED and window.holds(outcome.ended_s) for outcome in outcomes)
    num_within = None if deadline_ms is None else sum(outcome.latency_ms <= deadline_ms for outcome in answered)
    # In the order of the header, which is the order of the work.
    names = dict.fromkeys(name for outcome in answered for name in outcome.server_ms)
    latency_ms = take_percentiles([outcome.latency_ms for outcome in answered])
    lag_ms = take_percentiles([outcome.lag_ms for outcome in due]) if is_open else None
    errors = Counter(outcome.error for outcome in due if outcome.error is not None)
    return Summary(
        window_s=window.seconds,
        num_offered=len(due),
        offered_per_s=len(due) / window.seconds,
        num_answered=len(answered),
        answered_per_s=num_ended / window.seconds,
        num_within_deadline=num_within,
        goodput_per_s=None if num_within is None else num_within / window.seconds,
        statuses=dict(sorted(Counter(str(outcome.status) for outcome in due if outcome.status is not None).items())),
        errors=dict(sorted(errors.items())),
        latency_ms=latency_ms,
        server_ms={
            name: take_percentiles([outcome.server_ms[name] for outcome in answered if name in outcome.server_ms]) or {}
            for name in names
        },
        lag_ms=lag_ms,
        client_cpu=client_cpu,
        faults=tuple(_find_faults(latency_ms, lag_ms, errors, client_cpu)),
    )


def take_percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """By nearest rank: the smallest of the values that so many per mille of them do not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return {name: ordered[-(-len(ordered) * share // 1000) - 1] for name, share in PERCENTILES.items()}


def format_table(summary: Summary) -> str:
    """The summary for people, the faults of the client first."""
    lines = [f"!! THE CLIENT COULD NOT KEEP UP: {fault}" for fault in summary.faults]
    lines += [f"{'':<16}{'requests':>10}{'share':>10}{'per s':>10}"]
    counts: list[tuple[str, int, float | None]] = [
        ("offered", summary.num_offered, summary.offered_per_s),
        ("answered 200", summary.num_answered, summary.answered_per_s),
    ]
    if summary.num_within_deadline is not None:
        counts.append(("  goodput", summary.num_within_deadline, summary.goodput_per_s))
    for status, number in summary.statuses.items():
        if status != str(ANSWERED):
            counts.append((f"status {status}", number, None))
    counts += [(error, number, None) for error, number in summary.errors.items()]
    for name, number, per_s in counts:
        share = number / max(1, summary.num_offered)
        lines.append(f"{name:<16}{number:>10}{share:>10.2%}" + ("" if per_s is None else f"{per_s:>10.1f}"))
    rows = {"latency of 200": summary.latency_ms, **{f"  {name}": row for name, row in summary.server_ms.items()}}
    rows["lag"] = summary.lag_ms
    shown = {name: row for name, row in rows.items() if row}
    if shown:
        lines += ["", f"{'milliseconds':<16}" + "".join(f"{name:>10}" for name in PERCENTILES)]
    lines += [f"{name:<16}" + "".join(f"{value:>10.2f}" for value in row.values()) for name, row in shown.items()]
    return "\n".join(lines)


def _find_faults(
    latency_ms: Mapping[str, float] | None,
    lag_ms: Mapping[str, float] | None,
    errors: Mapping[str, int],
    client_cpu: float,
) -> Iterable[str]:
    for name, allowed in LAG_ALLOWED_MS.items() if lag_ms else ():
        assert lag_ms is not None
        latency = latency_ms[name] if latency_ms else 0.0
        if lag_ms[name] > max(allowed, LAG_SHARE * latency):
            found = f"{name} of its lag is {lag_ms[name]:.1f} ms"
            yield f"{found}, of latency {latency:.1f} ms" if latency_ms else found
            break
    if errors.get("unsent"):
        yield f"{errors['unsent']} requests were given up before they were sent"
    if errors.get("sockets"):
        yield f"it had no socket left for {errors['sockets']} requests (ulimit -n)"
    if client_cpu > CPU_SHARE:
        yield f"it used {client_cpu:.2f} of the one core it can use"
