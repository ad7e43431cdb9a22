"""The reference model as a bundle, exported once into a folder that git ignores."""

import subprocess
import sys
from pathlib import Path

CACHE = Path(".cache/benchmarks")


def name_reference(variant: str, max_length: int | None = None) -> str:
    """Its name as a model; longer ones have their longest sequence in it."""
    name = "reference-" + variant.replace("_", "-")
    return name if max_length is None else f"{name}-{max_length}"


def export_reference(variant: str, cache: Path = CACHE, max_length: int | None = None) -> Path:
    """The repository, in `cache`, that holds the reference model with one of the variants; exported unless it is there.

    By processes of their own: torch is needed once, and its threads and memory are none of what is measured.
    """
    # A repository of its own: a service loads all there is in one.
    name = name_reference(variant, max_length)
    repository = cache / ("repository" if max_length is None else name)
    bundle, checkpoint = repository / name / "1", cache / "checkpoints" / name
    if not bundle.exists():
        length = "" if max_length is None else f", {max_length}"
        save = f"from benchmarks.models import *; save_reference({variant!r}, Path({str(checkpoint)!r}){length})"
        for command in (["-c", save], ["-m", "attnserve", "export", str(checkpoint), str(bundle)]):
            # What they say is progress, and stdout may be a table.
            subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr)
    return repository
