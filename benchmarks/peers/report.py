"""The figures as a table of Markdown."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.peers.table import PEERS

COLUMNS = (
    "server",
    "CPU / bare",
    "ms of CPU",
    "p50, p99: ms",
    "wrong, failed",
    "one tiny: µs outside run",
    "tiny, saturated: µs",
    "idle, % of a core",
    "MiB (processes)",
    "SIGTERM",
)


def write_table(results: dict[str, Any]) -> str:
    """All figures are medians of the repeats; in brackets the least and the most."""
    lines = [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    measured = {name: peer for name, peer in results["peers"].items() if "failure" not in peer}
    bare = [load for peer in measured.values() for load in peer["mixed"]]
    tiny = [load for peer in measured.values() for load in peer["tiny_alone"]]
    if bare:
        mixed_ms = _spread(bare, lambda load: 1e3 * load["bare_seconds_per_request"], "{:.2f}")
        tiny_us = _spread(tiny, lambda load: 1e6 * load["bare_seconds_per_request"], "{:.0f}")
        lines.append(_row(["bare `session.run`", "1", mixed_ms, "", "", f"0 (run: {tiny_us})", "", "", "", ""]))
    for name, peer in results["peers"].items():
        lines.append(_row([name, *_cells(peer)]) if name in measured else _row([name, "failed, see below"]))
    for name, peer in results["peers"].items():
        lines += ["", f"{name}: {peer['failure']}"] if name not in measured else []
    return "\n".join([*lines, "", *_notes(results)])


def _cells(peer: dict[str, Any]) -> list[str]:
    mixed, alone, saturated = peer["mixed"], peer["tiny_alone"], peer["tiny_saturated"]
    every = [*mixed, *alone, *saturated]
    return [
        _spread(mixed, lambda load: load["ratio"], "{:.2f}"),
        _spread(mixed, lambda load: 1e3 * load["cpu_seconds_per_request"], "{:.2f}"),
        f"{_median_ms(mixed, 'p50_seconds')}, {_median_ms(mixed, 'p99_seconds')}",
        f"{sum(load['num_wrong'] for load in every)}, {sum(load['num_errors'] for load in every)}",
        _spread(alone, _outside_us, "{:.0f}"),
        _spread(saturated, lambda load: 1e6 * load["cpu_seconds_per_request"], "{:.0f}"),
        f"{100 * peer['idle_core_share']:.1f}",
        f"{peer['memory_bytes']['pss'] / 2**20:.0f} ({peer['num_processes']})",
        _stop(peer["sigterm"]),
    ]


def _median_ms(loads: list[dict[str, Any]], name: str) -> str:
    return f"{1e3 * statistics.median(load[name] for load in loads):.0f}"


def _outside_us(load: dict[str, Any]) -> float:
    return 1e6 * (load["cpu_seconds_per_request"] - load["bare_seconds_per_request"])


def _stop(stopped: dict[str, Any]) -> str:
    if stopped["left"]:
        return f"{len(stopped['left'])} left"
    return f"clean, {stopped['seconds']:.1f} s"


def _spread(loads: list[dict[str, Any]], of: Callable[[dict[str, Any]], float], form: str) -> str:
    numbers = [of(load) for load in loads]
    middle, least, most = (form.format(each) for each in (statistics.median(numbers), min(numbers), max(numbers)))
    return f"{middle} ({least}-{most})"


def _notes(results: dict[str, Any]) -> list[str]:
    notes = {peer.name: peer for peer in PEERS}
    lines = []
    for name in results["peers"]:
        versions = results["versions"].get(notes[name].environment, {})
        shown = ", ".join(f"{each} {versions[each]}" for each in notes[name].packages if each in versions)
        lines.append(f"* {name}: {notes[name].note} ({shown or 'not installed'}).")
    plan, machine = results["plan"], results["machine"]
    same = f"onnxruntime {machine['onnxruntime']}, numpy {machine['numpy']}, Python {machine['python']}"
    loads = f"{machine['load_before']:.1f} and {machine['load_after']:.1f}"
    lines += [
        f"* all: {same}; one thread, no spinning, one of {machine['num_cores']} cores ({machine['processor']}).",
        f"* {plan['repeats']} repeats of {plan['num_mixed']} sequences of 8-256 over {plan['num_connections']} "
        f"connections, and of {plan['num_tiny']} of 8, medians (least-most); batches of at most {plan['batch_size']} "
        f"where a server has such a limit. The machine's load was {loads} before and after.",
    ]
    return lines


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
