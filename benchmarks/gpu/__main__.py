"""`python -m benchmarks.gpu`: what only a GPU can show of attnserve, proven and measured in one run (docs/gpu.md).

Bundles that are missing are exported first, which needs no GPU: `--prepare` does that and ends.
"""

import argparse
import datetime
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnserve.records import to_json
from benchmarks.gpu.bundles import CACHE, ROOT, prepare
from benchmarks.gpu.findings import Outcome
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.plan import Plan, plan_for
from benchmarks.gpu.report import (
    Circumstances,
    check_page,
    explain_unusable,
    format_part,
    read_circumstances,
    record,
)
from benchmarks.gpu.running import run_part

MINUTES = 12.0


def main(arguments: Sequence[str] | None = None, plan_of: Callable[[str, str], Plan] = plan_for) -> int:
    """Run parts; 1 if a law was broken or a part is not whole, 2 if the device cannot be used at all."""
    options = read_arguments(arguments)
    # Told to stop, end what was started as at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = plan_of(options.device, str(options.bundles.resolve()))
    checkup = None if options.prepare else look_around()
    if checkup is not None and (reason := explain_unusable(checkup, plan.device)) is not None:
        print(f"device: expected a usable {plan.device} device, got none: {reason}", file=sys.stderr)
        return 2
    if not options.skip_exports:
        failed = prepare([bundle for name in options.only for bundle in PARTS[name].bundles(plan)])
        for bundle in failed:
            print(f"{bundle.model} in {bundle.precision} could not be exported", file=sys.stderr)
        if options.prepare:
            return 1 if failed else 0
    assert checkup is not None
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    circumstances = read_circumstances(checkup, plan.device, day, find_commit())
    outcomes: dict[str, Outcome] = {}
    begin = time.monotonic()
    for place, name in enumerate(options.only):
        seconds = share_time(options.only[place:], begin + 60 * options.minutes - time.monotonic())
        print(f"{name}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        outcomes[name] = run_part(name, plan, seconds)
        section = format_part(name, PARTS[name].law, outcomes[name], plan.device, circumstances)
        print(section, flush=True)
        # After each: whoever interrupts the next one keeps these.
        if options.json is not None:
            write_json(options.json, plan, circumstances, outcomes)
        if options.record is not None:
            record(options.record, {name: section}, PARTS)
    print("; ".join(f"{name}: {outcome.verdict.strip('*')}" for name, outcome in outcomes.items()))
    return 1 if any(outcome.failed for outcome in outcomes.values()) else 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is a trial, on a small scale")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="X",
        help=f"for all parts together, exports not counted; each has its share of what is left (default: {MINUTES:g})",
    )
    parser.add_argument(
        "--bundles", type=Path, default=CACHE, metavar="DIR", help=f"default: {CACHE.relative_to(ROOT)}"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prepare", action="store_true", help="export what is missing there, which needs no GPU, and end"
    )
    what.add_argument("--skip-exports", action="store_true", help="take the bundles that are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found to FILE")
    parser.add_argument("--record", type=Path, metavar="PAGE", help="also fill in the section of docs/gpu.md")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes: expected a number > 0 and at most {24 * 60}, got {options.minutes:g}")
    if options.record is not None:
        if options.device == "cpu":
            parser.error("--record: expected a run on a GPU, got --device cpu")
        try:
            check_page(options.record)
        except ValueError as error:
            parser.error(str(error))
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: expected a file in a folder that exists, got {options.json}")
    # In the order of their worth, whatever the order they were asked in.
    options.only = [name for name in PARTS if name in options.only]
    return options


def share_time(names: Sequence[str], seconds: float) -> float:
    """What the first of the parts that are left has of the time that is left: what it does not need is the others'."""
    return max(0.0, seconds) * PARTS[names[0]].share / sum(PARTS[name].share for name in names)


def look_around() -> dict[str, Any]:
    """What `attnserve doctor` says, in a process of its own: what it tries out on a GPU would stay there in this one.

    Raises:
        RuntimeError: it says nothing.
    """
    done = subprocess.run([sys.executable, "-m", "attnserve", "doctor", "--json"], capture_output=True, text=True)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"attnserve doctor: {done.stderr.strip() or f'exit code {done.returncode}'}") from None
    return found


def find_commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # There is no git.
        found = ""
    return f"commit {found}" if found else "no commit"


def write_json(file: Path, plan: Plan, circumstances: Circumstances, outcomes: Mapping[str, Outcome]) -> None:
    document = {
        "plan": to_json(plan),
        "circumstances": to_json(circumstances),
        "parts": {name: {"verdict": outcome.verdict, **to_json(outcome)} for name, outcome in outcomes.items()},
    }
    file.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
