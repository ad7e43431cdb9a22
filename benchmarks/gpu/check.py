"""`attnserve check` of every bundle, the real command in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from attnserve.machine import count_cores
from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.looking import look_at
from benchmarks.gpu.plan import Plan


def run(plan: Plan) -> Iterator[Finding]:
    # Several at a time: most of it is to start Python, and to load libraries and weights.
    with ThreadPoolExecutor(max(1, count_cores() // 4)) as pool:
        for findings in pool.map(lambda bundle: list(look_at(plan, bundle, find)), plan.bundles()):
            yield from findings


def find(plan: Plan, bundle: Bundle) -> Iterator[Finding]:
    begin = time.monotonic()
    command = [sys.executable, "-m", "attnserve", "check", str(bundle.folder), "--device", plan.device, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    yield judge(bundle, plan.device, done, time.monotonic() - begin)


def judge(bundle: Bundle, device: str, done: "subprocess.CompletedProcess[str]", seconds: float) -> Finding:
    """What the command said."""
    try:
        # ONNX Runtime prints what libraries it does not find.
        said = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Finding(cells=bundle.cells, broken=(lines[-1],))
    found = {
        name: f"{'no number' if said[name] is None else format(said[name], '.1e')} of {said['allowed'][name]:.1e}"
        for name in ("logits", "maps")
    }
    cells = {**bundle.cells, "device": said["device"], **found, "seconds": f"{seconds:.1f}"}
    broken = []
    if said["device"] != device:
        broken.append(f"expected it to run on {device}")
    if not said["passed"] or done.returncode:
        changed = f", {said['changed']} answers name another class" if said["changed"] else ""
        broken.append(f"outside its certificate{changed}")
    if said["weights_there"] is not None and not said["weights_there"]["passed"]:
        broken.append(f"attention weights fail there: {said['weights_there']['reason'].splitlines()[-1]}")
    return Finding(cells=cells, broken=tuple(broken))
