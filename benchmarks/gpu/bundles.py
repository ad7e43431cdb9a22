"""The bundles that are proven and timed: exported once, on any machine, into a folder that git ignores."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from attnserve.machine import count_cores
from benchmarks.reference import name_reference

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "benchmarks" / "gpu"
PRECISIONS = ("float32", "float16", "bfloat16")
VARIANT = "expressive"
TOP_K = "4"
REFERENCE, LARGE = name_reference(VARIANT), "large-expressive"
COMMITTED = tuple(sorted(path.parent.name for path in ROOT.glob("checkpoints/*/config.json")))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model in a precision."""

    root: str
    model: str
    precision: str

    @property
    def repository(self) -> Path:
        """One of its own: a service loads all there is in one."""
        return Path(self.root) / self.precision / self.model

    @property
    def folder(self) -> Path:
        return self.repository / self.model / "1"

    @property
    def is_there(self) -> bool:
        return (self.folder / "manifest.json").exists()

    @property
    def stamp(self) -> Path:
        """Says what code it was exported by."""
        return self.repository / "exported-by"

    @property
    def checkpoint(self) -> Path:
        """What it is exported from."""
        committed = ROOT / "checkpoints" / self.model
        return committed if committed.exists() else Path(self.root) / "checkpoints" / self.model

    @property
    def cells(self) -> dict[str, str]:
        """How its rows begin."""
        return {"model": self.model, "precision": self.precision}


def prepare(bundles: Sequence[Bundle]) -> list[Bundle]:
    """Export those that are missing or of other code, several at a time; returns those that could not be.

    By processes of their own: torch, its threads and its memory are none of what is measured.
    """
    code = hash_code()
    missing = [bundle for bundle in dict.fromkeys(bundles) if not (bundle.is_there and _read(bundle.stamp) == code)]
    # An export computes on one core most of the time.
    num_workers = max(1, min(count_cores(), len(missing)))
    threads = str(max(1, count_cores() // num_workers))
    for bundle in missing:
        if not (bundle.checkpoint / "config.json").exists():
            save = f"from benchmarks.models import *; save_{'large' if bundle.model == LARGE else 'reference'}"
            _run("-c", f"{save}({VARIANT!r}, Path({str(bundle.checkpoint)!r}))", threads=threads)

    def export(bundle: Bundle) -> bool:
        print(f"exporting {bundle.model} in {bundle.precision}", file=sys.stderr, flush=True)
        shutil.rmtree(bundle.folder, ignore_errors=True)
        words = ["export", str(bundle.checkpoint), str(bundle.folder), "--precision", bundle.precision]
        if bundle.model in COMMITTED:
            # Proven with entries that the graph chooses too; what is timed is asked for logits.
            words += ["--top-k", TOP_K]
        is_exported = _run("-m", "attnserve", *words, threads=threads)
        if is_exported:
            bundle.stamp.write_text(code, "utf-8")
        return is_exported

    with ThreadPoolExecutor(num_workers) as pool:
        exported = list(pool.map(export, missing))
    return [bundle for bundle, is_there in zip(missing, exported, strict=True) if not is_there]


def hash_code() -> str:
    """Of all that makes a bundle what it is, besides its checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("export", "models") for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> str:
    return file.read_text("utf-8") if file.exists() else ""


def _run(*words: str, threads: str) -> bool:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.returncode == 0
