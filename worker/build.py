"""Building a bundle in a process of its own, which is watched: a checkpoint can end that process and nothing else."""

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attnserve.flags import ENV_PREFIX
from attnserve.jobs import ExportOrder, Outcome, Verdict
from attnserve.worker.listening import Ended, Limits, Said, listen
from attnserve.worker.steps import Check

log = logging.getLogger(__name__)

# -P: not from the current folder, whatever lies there. Bound to its parent before it imports torch, for seconds.
CHILD = (
    sys.executable,
    "-P",
    "-c",
    "import sys; from attnserve.lifeline import die_with; die_with(int(sys.argv.pop(1))); "
    "from attnserve.export.child import main; sys.exit(main())",
)
# How often whether to go on is asked.
CHECK_S = 0.2

OnProgress = Callable[[str, str], None]


@dataclass(frozen=True, kw_only=True)
class Builder:
    """How bundles are built."""

    limits: Limits
    command: Sequence[str] = CHILD
    """Takes this process' id, the folders of checkpoint and bundle, and flags; speaks as `attnserve.export.child`."""
    clock: Callable[[], float] = time.monotonic

    def build(self, order: ExportOrder, work: Path, folder: Path, on_progress: OnProgress, check: Check) -> Verdict:
        """Have a bundle built and proven in an empty folder.

        Args:
            order: what is built.
            work: holds the checkpoint; what the process leaves behind is in a folder beside it.
            folder: of the bundle.
            on_progress: told each step and what it does.
            check: raises if the job is to go on no more; the process is killed then.
        """
        events: queue.SimpleQueue[Said | Ended] = queue.SimpleQueue()
        stop = threading.Event()
        process = self._start(order, work, folder)
        # Whatever keeps the one who is told of progress, such as a database that is away, keeps no limit from acting.
        listener = threading.Thread(target=listen, args=(process, self.limits, self.clock, events.put, stop))
        listener.daemon = True
        listener.start()
        step = "load"
        try:
            while True:
                check()
                with suppress(queue.Empty):
                    event = events.get(timeout=CHECK_S)
                    if isinstance(event, Ended):
                        return _judge(event, step)
                    step = event.step
                    on_progress(step, event.message)
                    continue
                if not listener.is_alive() and events.empty():
                    raise RuntimeError("nobody listens to the export process any more")
        finally:
            stop.set()
            listener.join()
            if process.returncode is None:
                # The listener has broken off: a bug, but no reason to leave a process behind.
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def _start(self, order: ExportOrder, work: Path, folder: Path) -> subprocess.Popen[bytes]:
        scratch = work / "tmp"
        scratch.mkdir(exist_ok=True)
        flags = ["--precision", order.precision, *(["--portable"] if order.portable else [])]
        flags += [] if order.top_k is None else ["--top-k", str(order.top_k)]
        # Settings are none of its business, and one of them may be a password.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        return subprocess.Popen(
            [*self.command, str(os.getpid()), str(work), str(folder), *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env={**environment, "TMPDIR": str(scratch)},
            start_new_session=True,
        )


def _judge(ended: Ended, step: str) -> Verdict:
    if ended.verdict is not None:
        # What happens to a process that has said all there is to say does not matter.
        if ended.verdict.outcome.state != "succeeded" and ended.stderr:
            log.warning("the export process said before it failed:\n%s", ended.stderr)
        return ended.verdict
    if ended.excess is not None:
        reason = f"{ended.excess} in step {step}"
    elif ended.exit_code < 0:
        name = signal.Signals(-ended.exit_code).name
        reason = f"the export process was killed by {name} in step {step}"
        if name == "SIGKILL":
            reason += "; if nobody has killed it, the system had no memory left"
    else:
        reason = f"the export process ended with {ended.exit_code} in step {step}, without a verdict"
    log.warning("%s; its last words:\n%s", reason, ended.stderr or "none")
    return Verdict(outcome=Outcome(state="failed", step=step, reason=reason))
