"""`make bench`: export the reference model once per variant and measure the engine on it with `attnserve bench`."""

import subprocess
import sys
from pathlib import Path

from attnserve.export import export_checkpoint
from benchmarks.models import OPTIONS, save_reference

CACHE = Path(".cache/benchmarks")


def main() -> int:
    for variant in OPTIONS:
        name = "reference-" + variant.replace("_", "-")
        bundle = CACHE / "repository" / name / "1"
        if not bundle.exists():
            save_reference(variant, CACHE / "checkpoints" / name)
            export_checkpoint(CACHE / "checkpoints" / name, bundle, report=print)
        subprocess.run([sys.executable, "-m", "attnserve", "bench", str(bundle), *sys.argv[1:]], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
