"""`python -m benchmarks.mixed`: how long plain predictions take while one request in ten asks what heads attend to.

Reference model, lengths 8 to 256, an open loop at half of the capacity measured before: first predictions alone, then
nine in ten of them beside requests for diagnostics of all heads, or for one layer's last row, in turns.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.asking import LENGTHS, READY
from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference
from benchmarks.service import split_cores, start_service

SHARE = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=OPTIONS, default="expressive")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of each run")
    options = parser.parse_args()
    core, _ = split_cores()
    repository, model = export_reference(options.variant), name_reference(options.variant)
    with start_service(repository, core, "--log-level", "warning") as service, tempfile.TemporaryDirectory() as folder:
        url, report = f"http://127.0.0.1:{service.port}", Path(folder) / "report.json"
        bench = [sys.executable, "-m", "attnserve", "bench", "--url", url, "--model", model, "--quiet"]
        bench += ["--lengths", f"{LENGTHS[0]}-{LENGTHS[1]}", "--json", str(report)]
        bench += ["--duration", str(options.duration)]
        capacity = run([*bench, "--closed", "16"], report)["answered_per_s"]
        rate = capacity / 2
        print(f"capacity {capacity:.1f} requests/s, asked {rate:.1f}, for {options.duration:g} s each; ms")
        columns = f"{'alone p50':>10} {'p99':>8} {'mixed p50':>10} {'p99':>8} {'ratio':>6}"
        print(f"{'':<3} {columns} {'asked p50':>10} {'p99':>8}")
        ratios = []
        for number in range(options.repeats):
            seeded = [*bench, "--seed", str(number)]
            alone = run([*seeded, "--rate", str(rate)], report)["latency_ms"]
            with asking(f"{url}/v1/models/{model}/attention", SHARE * rate, number) as asked:
                mixed = run([*seeded, "--rate", str((1 - SHARE) * rate)], report)["latency_ms"]
            ratios.append(mixed["p99"] / alone["p99"])
            p50, p99 = (asked[int(share * (len(asked) - 1))] for share in (0.5, 0.99))
            plain = f"{alone['p50']:>10.2f} {alone['p99']:>8.2f} {mixed['p50']:>10.2f} {mixed['p99']:>8.2f}"
            print(f"{number + 1:<3} {plain} {ratios[-1]:>6.2f} {p50:>10.2f} {p99:>8.2f}", flush=True)
        print(f"p99 of plain predictions, mixed by alone: median {statistics.median(ratios):.2f}")
    return 0


def run(command: list[str], report: Path) -> dict[str, Any]:
    """Figures of one run of `attnserve bench`."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(report.read_bytes())
    return found


@contextlib.contextmanager
def asking(url: str, rate: float, seed: int) -> Iterator[list[float]]:
    """Ask about attention meanwhile, in a process of its own; its latencies in ms are there afterwards, in order."""
    command = [sys.executable, "-m", "benchmarks.asking", url, "--rate", str(rate), "--seed", str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    latencies: list[float] = []
    try:
        assert process.stdout.readline().strip() == READY
        yield latencies
        latencies += sorted(json.loads(process.communicate()[0]))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
