"""Verifying a bundle before anyone sees it: `attnserve check` where torch cannot be imported, and a second reader."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from attnserve.bundle import HEAD_SCALE, LOGITS, MODEL_FILE, TOP, BundleError, Manifest
from attnserve.golden import Golden, largest_difference
from attnserve.packing import pack
from attnserve.runtime import feeds_of
from attnserve.sessions import NO_DEVICE
from attnserve.top import count_wrong

# The evaluator is plain numpy and slow: a few short sequences in one batch are enough to read the graph a second way.
REFERENCE_MAX_ROWS = 40

# The process imports from where this one does: PYTHONPATH may be missing there, or say otherwise.
CHECK = """
import sys
folder, device, parent, *sys.path = sys.argv[1:]
for name in ("torch", "onnx", "onnxscript"):
    sys.modules[name] = None  # makes `import name` fail
from attnserve.lifeline import die_with
die_with(int(parent))
from attnserve.cli import main
raise SystemExit(main(["check", folder, "--device", device, "--json"]))
"""


class VerificationError(BundleError):
    """An exported bundle does not answer as PyTorch does; nothing was published.

    Attributes:
        report: what was measured, for people; empty if it did not come to that.
    """

    def __init__(self, message: str, *, report: str = "") -> None:
        super().__init__(message if not report else f"{message}\n{report}")
        self.message, self.report = message, report


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the two readers measured, as largest absolute differences from PyTorch float64."""

    table: str
    logits: float | None
    """None if ONNX Runtime cannot run the bundle here: bfloat16 without a CUDA device."""
    maps: float | None
    reference_logits: float


def verify(folder: Path, golden: Golden, manifest: Manifest) -> Verified:
    """Replay golden in a process of its own, and run the graph in onnx's ReferenceEvaluator.

    A bfloat16 bundle is replayed on CUDA. Without such a device the second reader is the only one; whoever serves the
    bundle replays golden before it answers.

    Raises:
        VerificationError: a difference is outside the certificate; the message holds the table.
    """
    report = _replay(folder, manifest)
    allowed = manifest.certificate.logits.allowed
    reference = _reference_difference(folder, golden, manifest)
    if not reference <= allowed:
        raise VerificationError(
            f"onnx's ReferenceEvaluator differs from PyTorch float64 by {reference:.1e} in the logits; "
            f"expected at most {allowed:.1e}; nothing was published",
            report="" if report is None else report["table"],
        )
    if report is None:
        table = "not replayed in ONNX Runtime: bfloat16 needs a CUDA device, and none can be used here"
        return Verified(table=table, logits=None, maps=None, reference_logits=reference)
    return Verified(table=report["table"], logits=report["logits"], maps=report["maps"], reference_logits=reference)


def _replay(folder: Path, manifest: Manifest) -> Any:
    """The report of `attnserve check`, or None if no device here can run the bundle."""
    needs_cuda = manifest.certificate.precision == "bfloat16"
    device = "cuda" if needs_cuda else "cpu"
    # -P: not from the current folder, whatever lies there.
    command = [sys.executable, "-P", "-c", CHECK, str(folder), device, str(os.getpid()), *sys.path]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        report = json.loads(process.stdout)
    except json.JSONDecodeError:
        if needs_cuda and NO_DEVICE in process.stderr:
            return None
        said = f"{process.stdout}{process.stderr}".strip()
        raise VerificationError(f"attnserve check ended with {process.returncode} on the new bundle: {said}") from None
    if process.returncode != 0:
        raise VerificationError(
            "the bundle does not answer as PyTorch does; nothing was published", report=report["table"]
        )
    return report


def _reference_difference(folder: Path, golden: Golden, manifest: Manifest) -> float:
    """Largest difference in the logits when onnx's own evaluator runs the graph and its function bodies.

    Raises:
        VerificationError: top entries are not those of the logits.
    """
    starts = np.cumsum(golden.lengths) - golden.lengths
    members = [index for index, end in enumerate(np.cumsum(golden.lengths)) if end <= REFERENCE_MAX_ROWS] or [0]
    packed = pack([golden.sequences[index] for index in members])
    origin = np.concatenate([np.arange(starts[index], starts[index] + golden.lengths[index]) for index in members])
    rows = np.flatnonzero(np.isin(origin, golden.logit_rows))
    model = onnx.load(folder / MODEL_FILE)
    (head_scale,) = (entry for entry in model.graph.initializer if entry.name == HEAD_SCALE)
    # The evaluator does not take an input's default from its initialiser.
    feeds = feeds_of(manifest, packed, rows, head_scale=onnx.numpy_helper.to_array(head_scale))
    # Plain numpy: it warns of infinities that a select drops right afterwards.
    with np.errstate(all="ignore"):
        names = [LOGITS, *(() if manifest.top_k is None else TOP)]
        found: Any = ReferenceEvaluator(model).run(names, feeds)
        outputs = dict(zip(names, found, strict=True))
        # Of equal logits it may choose others than ONNX says.
        num_wrong = 0 if manifest.top_k is None else count_wrong(outputs, settles_ties=False)
    if num_wrong:
        raise VerificationError(
            f"of {num_wrong} answers of onnx's ReferenceEvaluator the top entries are not those of their logits; "
            "nothing was published"
        )
    return largest_difference(outputs[LOGITS], golden.logits[np.searchsorted(golden.logit_rows, origin[rows])])
