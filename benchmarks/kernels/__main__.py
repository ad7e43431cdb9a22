"""`python -m benchmarks.kernels`: what native kernels gain, as ratios of CPU time of one thread in one run."""

import argparse
import dataclasses
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.kernels.memory import measure_memory
from benchmarks.kernels.model import format_models, measure_model
from benchmarks.kernels.ops import OPS, SHAPES, format_ops, measure_op
from benchmarks.kernels.peak import Peak
from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "kernels" / "build"
PARTS = ("ops", "memory", "model")
# Beyond it bodies need more memory than many machines have.
MEMORY_LENGTHS = {"kernel": (1024, 2048, 4096, 8192), "body": (1024, 2048, 4096)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times everything is measured (default: 5)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parsed = parser.parse_args()
    targets = ("attnserve_kernels", "attnserve_peak")
    for command in (("cmake", "-S", ROOT / "kernels", "-B", BUILD), ("cmake", "--build", BUILD, "--target", *targets)):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    library, peak_library = (BUILD / f"lib{target}.so" for target in targets)
    document: dict[str, Any] = {}
    if "ops" in parsed.only:
        document |= run_ops(library, peak_library, parsed.rounds)
    if "memory" in parsed.only:
        document |= run_memory(library)
    if "model" in parsed.only:
        document |= run_models(library, parsed.rounds)
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


def run_ops(library: Path, peak_library: Path, rounds: int) -> dict[str, Any]:
    """Kernels beside bodies, fused attention and the peak."""
    peak = Peak(peak_library)
    figures = [measure_op(op, shape, library, peak=peak, rounds=rounds) for op in OPS for shape in SHAPES]
    median = statistics.median(line.peak for line in figures)
    print(f"peak of this core: {median / 1e9:.1f}e9 multiply-adds of float32 per second")
    print(format_ops(figures), flush=True)
    return {"ops": [dataclasses.asdict(line) for line in figures]}


def run_memory(library: Path) -> dict[str, Any]:
    """How memory grows."""
    chosen = {"kernel": library, "body": None}
    found = {
        name: {length: measure_memory(length, chosen[name]) for length in lengths}
        for name, lengths in MEMORY_LENGTHS.items()
    }
    for name, by_length in found.items():
        print(
            f"memory, {name}:",
            ", ".join(f"{number / 2**20:.1f} MiB at {length}" for length, number in by_length.items()),
        )
    return {"memory": found}


def run_models(library: Path, rounds: int) -> dict[str, Any]:
    """The reference model of every variant."""
    figures = []
    for variant in OPTIONS:
        bundle = export_reference(variant) / name_reference(variant) / "1"
        figures.append(measure_model(variant, bundle, library, rounds))
    print(format_models(figures), flush=True)
    return {"models": [dataclasses.asdict(line) for line in figures]}


if __name__ == "__main__":
    raise SystemExit(main())
