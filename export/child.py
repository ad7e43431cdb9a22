"""The process in which a worker has a bundle built: whatever a checkpoint does to it, it does to nothing else.

It says what it does in JSON, a line each, to what was its standard output: `{"progress": {"step": ..., "message":
...}}`, and last `{"verdict": ...}`, an `attnserve.jobs.Verdict`. What libraries print goes to standard error.
"""

import argparse
import json
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from attnserve.bundle import MANIFEST_FILE, hash_file
from attnserve.certificate import PRECISIONS
from attnserve.export.build import Built
from attnserve.export.job import build_checkpoint
from attnserve.export.verify import VerificationError
from attnserve.jobs import Outcome, Parity, Verdict
from attnserve.records import to_json

MAX_REASON = 2000
MAX_REPORT = 20_000


class Channel:
    """Where the worker listens."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.step = "load"
        """The one that began last."""

    def report(self, step: str, message: str) -> None:
        """Say that a step begins."""
        self.step = step
        # Where the worker keeps its copies is nobody's business.
        said = "config, tensors, tokenizer and card" if step == "load" else message
        self._say({"progress": {"step": step, "message": said}})

    def conclude(self, verdict: Verdict) -> None:
        """Say what came of it."""
        self._say({"verdict": to_json(verdict)})

    def _say(self, document: dict[str, Any]) -> None:
        print(json.dumps(document), file=self._file, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one bundle; the exit code is 0 whatever the verdict."""
    parser = argparse.ArgumentParser(prog="python -m attnserve.export.child", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="there and empty")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--portable", action="store_true")
    parser.add_argument("--top-k", type=int)
    options = parser.parse_args(arguments)
    # What aborts would leave its memory in the current folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        # Where the kernel has to choose whom to kill, this one can be had again.
        Path("/proc/self/oom_score_adj").write_text("1000")
    channel = Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    verdict = judge(
        options.checkpoint, options.folder, options.precision, options.portable, channel, top_k=options.top_k
    )
    channel.conclude(verdict)
    return 0


def judge(
    checkpoint: Path, folder: Path, precision: str, portable: bool, channel: Channel, *, top_k: int | None = None
) -> Verdict:
    """Build a bundle and say what came of it; raises nothing."""
    try:
        built = build_checkpoint(
            checkpoint, folder, precision=precision, portable=portable, top_k=top_k, report=channel.report
        )
        return Verdict(
            outcome=Outcome(state="succeeded", parity=_measure(built)),
            manifest_sha256=hash_file(folder / MANIFEST_FILE),
            checkpoint_sha256=built.manifest.provenance.checkpoint_sha256,
        )
    except VerificationError as error:
        return Verdict(outcome=_refuse(channel.step, error.message, report=error.report[:MAX_REPORT] or None))
    except Exception as error:
        # Ours say what was expected and what came; others are bugs, or what a library makes of a checkpoint.
        ours = type(error).__module__.startswith("attnserve.") or type(error) is ValueError
        if not ours:
            traceback.print_exc(file=sys.stderr)
        reason = str(error) if ours else f"unexpected {type(error).__name__}: {error}"
        short = reason.replace(f"{checkpoint}{os.sep}", "").replace(f"{folder}{os.sep}", "")
        return Verdict(outcome=_refuse(channel.step, short))


def _measure(built: Built) -> Parity:
    return Parity(
        logits=built.manifest.certificate.logits,
        maps=built.manifest.certificate.maps,
        reference_logits=built.verified.reference_logits,
        table=built.verified.table,
    )


def _refuse(step: str, reason: str, report: str | None = None) -> Outcome:
    # JSON can spell half of a surrogate pair, and a config so name a field; no database takes it.
    encodable = reason[:MAX_REASON].encode(errors="replace").decode()
    return Outcome(state="failed", step=step, reason=encodable, report=report)


if __name__ == "__main__":
    raise SystemExit(main())
