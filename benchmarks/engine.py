"""`make bench`: export the reference model once per variant and measure the engine on it with `attnserve bench`."""

import subprocess
import sys

from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference


def main() -> int:
    for variant in OPTIONS:
        bundle = export_reference(variant) / name_reference(variant) / "1"
        subprocess.run([sys.executable, "-m", "attnserve", "bench", str(bundle), *sys.argv[1:]], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
