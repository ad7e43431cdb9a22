"""Running a part: in a process of its own, for so long, keeping whatever it found until its end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attnserve.records import from_json, to_json
from benchmarks.gpu.bundles import ROOT
from benchmarks.gpu.findings import Finding, Outcome
from benchmarks.gpu.plan import Plan

# For servers that were started to be stopped.
GRACE_SECONDS = 25.0


def run_part(name: str, plan: Plan, seconds: float, *, module: str = "benchmarks.gpu.child") -> Outcome:
    """Run a part for at most so many seconds. What it prints is on this process's stderr.

    Args:
        name: of the part.
        plan: what it looks at.
        seconds: after which it is ended.
        module: that is run.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        said, file = Path(work) / "plan.json", Path(work) / "findings"
        said.write_text(json.dumps(to_json(plan)), "utf-8")
        file.touch()
        process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(said), str(file)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            # A group of its own, to be ended as a whole.
            start_new_session=True,
        )
        try:
            process.wait(seconds)
            cut = f"it ended with exit code {process.returncode}" if process.returncode else None
        except subprocess.TimeoutExpired:
            cut = f"cut short after {seconds:.0f} s"
        finally:
            _end(process)
        findings = tuple(read_findings(file.read_text("utf-8")))
    return Outcome(findings=findings, seconds=time.monotonic() - begin, cut=cut)


def read_findings(lines: str) -> list[Finding]:
    """Those that were written in whole."""
    return [from_json(Finding, json.loads(line)) for line in lines.splitlines(keepends=True) if line.endswith("\n")]


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    # What does not listen, and what the process left behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
