"""The reference model as a bundle, exported once into a folder that git ignores."""

import subprocess
import sys
from pathlib import Path

CACHE = Path(".cache/benchmarks")


def name_reference(variant: str) -> str:
    """Its name as a model."""
    return "reference-" + variant.replace("_", "-")


def export_reference(variant: str, cache: Path = CACHE) -> Path:
    """The repository, in `cache`, that holds the reference model with one of the variants; exported unless it is there.

    By processes of their own: torch is needed once, and its threads and memory are none of what is measured.
    """
    name, repository = name_reference(variant), cache / "repository"
    bundle, checkpoint = repository / name / "1", cache / "checkpoints" / name
    if not bundle.exists():
        save = f"from benchmarks.models import *; save_reference({variant!r}, Path({str(checkpoint)!r}))"
        for command in (["-c", save], ["-m", "attnserve", "export", str(checkpoint), str(bundle)]):
            # What they say is progress, and stdout may be a table.
            subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr)
    return repository
