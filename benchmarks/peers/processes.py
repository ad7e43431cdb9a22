"""A server and all of its processes: started on one core, measured, ended. Linux only: it reads /proc."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

MARK = "PEERS_MARK"
_TICK = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True)
class Stopped:
    """What came of SIGTERM to the first process."""

    seconds: float
    exit_code: int | None
    """None if the first process was still there."""
    left: list[str]
    """Commands of processes that were still there and had to be killed."""


class ProcessTree:
    """A command, pinned to one core, and whatever it starts.

    Processes are told by a mark in their environment, which children inherit: orphans have no parent to be found by.
    """

    def __init__(self, command: list[str], environment: dict[str, str], core: int, folder: Path, log: Path) -> None:
        self.mark = f"{MARK}={uuid.uuid4().hex}".encode()
        name, value = self.mark.decode().split("=")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, name: value},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the runner, which then ends the servers itself.
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )

    def pids(self) -> list[int]:
        """Living processes of the tree; zombies are not."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_ours(entry):
                found.append(int(entry.name))
        return sorted(found)

    def _is_ours(self, entry: Path) -> bool:
        try:
            # A zombie's environment is empty.
            return self.mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def cpu_seconds(self) -> float:
        """CPU time of the tree so far: of the living, to the nanosecond, and of children they have waited for."""
        return sum(_cpu_of(pid) + _cpu_of_children(pid) for pid in self.pids())

    def memory_bytes(self) -> dict[str, int]:
        """`rss` counts pages once per process that maps them, `pss` once."""
        totals = {"rss": 0, "pss": 0}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    if name.lower() in totals:
                        totals[name.lower()] += 1024 * int(rest.split()[0])
        return totals

    def num_threads(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.pids())

    def stop(self, max_seconds: float = 15.0) -> Stopped:
        """SIGTERM to the first process alone, as an init system or a container does; kill what is left."""
        start = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        # The first process may go well before its children do.
        while self.pids() and time.monotonic() - start < max_seconds:
            self.process.poll()
            time.sleep(0.02)
        seconds = time.monotonic() - start
        exit_code = self.process.poll()
        left = [_command_of(pid) for pid in self.pids()]
        self.kill()
        return Stopped(seconds, exit_code, left)

    def kill(self) -> None:
        """Kill what is there, until nothing is."""
        for _ in range(100):
            pids = self.pids()
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.process.wait()


def _cpu_of(pid: int) -> float:
    # The clock that clock_getcpuclockid(3) gives, which Python does not have; utime in /proc/<pid>/stat is the same in
    # steps of 10 ms.
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def _cpu_of_children(pid: int) -> float:
    try:
        # The name of a process may hold spaces and brackets; after it come plain fields, the third of proc(5) first.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / _TICK


def _command_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    return " ".join([Path(words[0]).name, *words[1:]]).strip()[:120]
