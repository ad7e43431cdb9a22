"""The reference model of the benchmarks, exported once into a folder that git ignores."""

import subprocess
import sys
from pathlib import Path

VARIANT = "expressive"
NAME = f"reference-{VARIANT}"
# Where `make bench` keeps it.
CACHE = Path(".cache/benchmarks")


def prepare_reference() -> Path:
    """The repository that holds it."""
    repository = CACHE / "repository"
    if not (repository / NAME / "1").exists():
        # torch is needed once, and its threads and memory are none of the client's.
        code = (
            f"from benchmarks.models import *; save_reference({VARIANT!r}, Path({str(CACHE / 'checkpoints' / NAME)!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        export = [sys.executable, "-m", "attnserve", "export", str(CACHE / "checkpoints" / NAME)]
        subprocess.run([*export, str(repository / NAME / "1")], check=True)
    return repository
