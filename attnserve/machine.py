"""The machine: how many cores and how much memory this process may use, within the limits of its container."""

import ctypes
import os
import platform
from pathlib import Path

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
NUM_HEAPS, LARGE_BLOCK_BYTES = 2, 1024 * 1024

CGROUP, MEMINFO, CPUINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo"), Path("/proc/cpuinfo")


def count_cores() -> int:
    """Cores this process may use: its affinity, within the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _read_cgroup("cpu.max", "cpu/cpu.cfs_quota_us")
    if quota is not None and quota.split()[0] not in ("max", "-1"):
        period = (_read_cgroup("cpu.max", "cpu/cpu.cfs_period_us") or "100000").split()[-1]
        cores = min(cores, max(1, round(int(quota.split()[0]) / int(period))))
    return cores


def name_processor() -> str:
    """What the processor calls itself; where it does not say, the architecture and the number of cores."""
    lines = (_read(CPUINFO) or "").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, f"{platform.machine()} {os.cpu_count()}")


def memory_limit() -> int:
    """Bytes this process may use: the cgroup's limit, else the machine's memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_limit()
    return physical if limit is None else min(physical, limit)


def free_memory() -> int:
    """Bytes this process may still take: what is left of the cgroup's limit, and what the machine has to give."""
    free = memory_limit()
    meminfo = _read(MEMINFO)
    if meminfo is not None:
        lines = (line.split() for line in meminfo.splitlines())
        free = min([free, *(1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")])
    limit, used = _cgroup_limit(), _read_cgroup("memory.current", "memory/memory.usage_in_bytes")
    if limit is None or used is None:
        return free
    # The cache of files counts as used, and is given up when somebody needs the memory.
    statistics = (_read_cgroup("memory.stat", "memory/memory.stat") or "").splitlines()
    by_name = {words[0]: int(words[1]) for words in map(str.split, statistics) if len(words) == 2}
    cached = by_name.get("inactive_file", by_name.get("total_inactive_file", 0))
    return min(free, max(0, limit - int(used) + cached))


def bound_malloc() -> bool:
    """Keep the C library from keeping memory; to be called before there are threads. Whether it has the knobs.

    glibc gives every thread a heap of its own, none of which shrinks while anything lives at its top, and learns to
    take ever larger blocks from them. A service held 241 MiB so after 30,000 mixed questions, and 155 with this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # All three: setting one of the thresholds ends the learning of both.
    settings = {M_ARENA_MAX: NUM_HEAPS, M_MMAP_THRESHOLD: LARGE_BLOCK_BYTES, M_TRIM_THRESHOLD: LARGE_BLOCK_BYTES}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return all(taken)


def trim_malloc() -> bool:
    """Give back what is free in the middle of the C library's heaps; a few milliseconds. Whether it has such a thing.

    A heap itself gives back its end alone: a few bytes of a request that stay, as what a cache remembers, keep all that
    other requests had freed before them.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0) >= 0)
    except (OSError, AttributeError):
        return False


def _cgroup_limit() -> int | None:
    limit = _read_cgroup("memory.max", "memory/memory.limit_in_bytes")
    return int(limit) if limit is not None and limit.isdigit() else None


def _read_cgroup(version_2: str, version_1: str) -> str | None:
    return _read(CGROUP / version_2) or _read(CGROUP / version_1)


def _read(path: Path) -> str | None:
    """What a file says; None if it is not there, or may not be read, as in some sandboxes."""
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return None
