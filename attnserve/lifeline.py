"""Lifelines: a process that must not outlive the one that started it, however that one ends. Standard library only."""

import ctypes
import os
import signal
import sys

# Of linux/prctl.h.
PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when process `parent`, which started it, ends: by SIGKILL too.

    The kernel watches the thread that started it, so that thread must live as long as the process. What this process
    starts itself needs a lifeline of its own. On Linux only; elsewhere nothing happens.

    Args:
        parent: its id, as it knew it when it started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the kernel was asked, and has another parent by then.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
