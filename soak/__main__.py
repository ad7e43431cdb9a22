"""`python -m soak`: what breaks services after hours, each scenario with its law (docs/soak.md). Linux only."""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attnserve.records import to_json
from soak import damage, drain, frames, kills, memory, overload, poison, reload, schema, workers
from soak.record import look_around, record
from soak.server import workspace
from soak.verdict import Report, format_report

Scenario = Callable[[Path, Path, float], Report]
"""Of the repository that `make bundles` makes, a folder to work in, and the scale of its counts."""

SCENARIOS: Mapping[str, Scenario] = {
    "memory": memory.run,
    "reload": reload.run,
    "drain": drain.run,
    "poison": poison.run,
    "overload": overload.run,
    "frames": frames.run,
    "schema": schema.run,
    "kills": kills.run,
    "workers": workers.run,
    "damage": damage.run,
}


def main(arguments: Sequence[str] | None = None, scenarios: Mapping[str, Scenario] = SCENARIOS) -> int:
    """Run scenarios; 1 if a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=scenarios, default=list(scenarios), metavar="NAME")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="of the counts: 0.01 is a trial")
    parser.add_argument("--repository", type=Path, default=Path("repository"), help="what `make bundles` makes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the reports to FILE")
    parser.add_argument("--record", type=Path, metavar="PAGE", help="also fill in the table of docs/soak.md")
    options = parser.parse_args(arguments)
    if not 0 < options.scale <= 100:
        parser.error(f"--scale: expected a number > 0 and at most 100, got {options.scale:g}")
    # Told to stop, end what was started as at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    circumstances = look_around(options.scale)
    reports: dict[str, Report] = {}
    for name in options.only:
        print(f"{name} ...", flush=True)
        begin = time.monotonic()
        report = run_scenario(scenarios[name], options.repository.resolve(), options.scale)
        reports[name] = report
        print(f"{format_report(name, report)}\n  minutes: {(time.monotonic() - begin) / 60:.1f}", flush=True)
        # After each: whoever interrupts the next one keeps these.
        if options.json is not None:
            document = {"circumstances": to_json(circumstances), "reports": to_json(reports)}
            options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        if options.record is not None:
            record(options.record, {name: report}, circumstances, scenarios)
    return 1 if any(report.broken for report in reports.values()) else 0


def run_scenario(scenario: Scenario, repository: Path, scale: float) -> Report:
    """A scenario that cannot be run to its end has broken a law, and does not keep the others from running."""
    try:
        with workspace() as work:
            return scenario(repository, work, scale)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Report(figures={}, broken=[f"it could not be run to its end: {type(error).__name__}: {error}"])


if __name__ == "__main__":
    raise SystemExit(main())
