"""Listening to the process that builds a bundle, and ending it when it takes more than it may."""

import json
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from attnserve.jobs import STEPS, Verdict
from attnserve.records import RecordError, from_json
from attnserve.worker.memory import measure_memory

# How often the process is looked at: it takes some hundred MiB between two looks at most.
WATCH_S = 0.1
CHUNK_BYTES = 64 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_STDERR_BYTES = 16 * 1024
GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of building one bundle."""

    seconds: float
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """A step begins."""

    step: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The process is gone."""

    exit_code: int
    """Negative if a signal ended it, as in `subprocess`."""
    verdict: Verdict | None
    """None if it did not come to one."""
    excess: str | None
    """Which limit it was killed for, in words."""
    stderr: str
    """The end of what it wrote there."""


def listen(
    process: subprocess.Popen[bytes],
    limits: Limits,
    clock: Callable[[], float],
    tell: Callable[[Said | Ended], None],
    stop: threading.Event,
) -> None:
    """Pass on what a process says until it ends, and then how it ended.

    Args:
        process: in a session of its own, with pipes for standard output and error.
        limits: it is killed, and all that it has started, when it reaches one.
        clock: seconds.
        tell: called with each step, and last with the end.
        stop: it is killed when this is set.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    begin = clock()
    excess: str | None = None
    verdict: Verdict | None = None
    pending, stderr = b"", b""
    with selectors.DefaultSelector() as selector, process.stdout, process.stderr:
        for pipe in (process.stdout, process.stderr):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(WATCH_S):
                data = os.read(key.fd, CHUNK_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    stderr = (stderr + data)[-MAX_STDERR_BYTES:]
                else:
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        said = parse_line(line)
                        if isinstance(said, Said):
                            tell(said)
                        elif said is not None:
                            verdict = said
            excess = excess or _find_excess(process.pid, limits, clock() - begin)
            if len(pending) > MAX_LINE_BYTES:
                excess = excess or "building said a line without an end"
            if excess is not None or stop.is_set() or _has_ended(process.pid):
                # By its number, which nobody else can get before it is waited for below. What it has left running, if
                # it has ended, would hold the pipes open.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    tell(Ended(exit_code=process.wait(), verdict=verdict, excess=excess, stderr=stderr.decode(errors="replace")))


def parse_line(line: bytes) -> Said | Verdict | None:
    """What a line says; None if it is none of `attnserve.export.child`."""
    try:
        document = json.loads(line)
        if "verdict" in document:
            return from_json(Verdict, document["verdict"])
        said = from_json(Said, document["progress"])
    except (ValueError, TypeError, KeyError, RecursionError, RecordError):
        return None
    return said if said.step in STEPS else None


def _find_excess(process: int, limits: Limits, seconds: float) -> str | None:
    if seconds > limits.seconds:
        return f"building took longer than {limits.seconds:g} s (--max-export-seconds of the worker)"
    if measure_memory(process) > limits.num_bytes:
        return f"building took more than {limits.num_bytes / GIB:.3g} GiB of memory (--max-export-bytes of the worker)"
    return None


def _has_ended(process: int) -> bool:
    """Whether a child has ended, without waiting for it; where the system cannot say, its pipes will."""
    if not hasattr(os, "waitid"):
        return False
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
