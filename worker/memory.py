"""How much memory a process and its descendants hold."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
# Memory that only giving it back frees. Pages of files, such as mapped weights, the kernel takes away by itself.
KINDS = ("RssAnon", "RssShmem")


def measure_memory(process: int) -> int:
    """Bytes of memory that a process and all its descendants hold; 0 where the system does not say, as only Linux does.

    An address-space limit would be exact, and kill `import torch`.
    """
    return sum(_read_memory(one) for one in _find_family(process))


def _find_family(process: int) -> Iterator[int]:
    yield process
    # Missing: it has ended, and its descendants with it.
    with suppress(OSError):
        for task in os.listdir(PROC / str(process) / "task"):
            with suppress(OSError):
                children = (PROC / str(process) / "task" / task / "children").read_text()
                for child in children.split():
                    yield from _find_family(int(child))


def _read_memory(process: int) -> int:
    try:
        lines = (PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(1024 * int(fields[kind].split()[0]) for kind in KINDS if kind in fields)
