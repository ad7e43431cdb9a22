"""What the machine has to give, within the limits of the container."""

import platform
import subprocess
import sys

import pytest

from attnserve import machine
from attnserve.machine import count_cores, free_memory, memory_limit, name_processor

PAGE = 4096


@pytest.fixture
def set_up(tmp_path, monkeypatch):
    """A machine of 8 cores and 1000 pages; files as the kernel shows them, by their path below the cgroup."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": 1000}.__getitem__)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")

    def write(files, available_kib=None):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        if available_kib is not None:
            lines = ("MemTotal: 4000 kB", "MemFree: 1 kB", f"MemAvailable: {available_kib} kB", "HugePages_Total: 0")
            (tmp_path / "meminfo").write_text("\n".join(lines))

    return write


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cores_within_the_quota(set_up, files, cores):
    set_up(files)
    assert count_cores() == cores


def test_the_processor_says_its_name(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Z80 @ 2.5 MHz\nmodel name\t: another\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert name_processor() == "Z80 @ 2.5 MHz"


@pytest.mark.parametrize("text", [None, "Processor: of some other kernel"])
def test_a_processor_without_a_name_has_an_architecture(tmp_path, monkeypatch, text):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert name_processor().split()[0] == platform.machine()


@pytest.mark.parametrize(
    "files",
    [{}, {"memory.max": "max"}, {"memory/memory.limit_in_bytes": "9223372036854771712"}],
)
def test_memory_without_a_limit_is_the_machines(set_up, files):
    set_up(files)
    assert memory_limit() == 1000 * PAGE


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_within_the_limit(set_up, name):
    set_up({name: "1000000"})
    assert memory_limit() == 1_000_000


VERSION_2 = {"memory.max": "1000000", "memory.current": "900000"}
VERSION_1 = {"memory/memory.limit_in_bytes": "1000000", "memory/memory.usage_in_bytes": "900000"}


@pytest.mark.parametrize(
    ("files", "available_kib", "free"),
    [
        # Neither the container nor the kernel says anything.
        ({}, None, 1000 * PAGE),
        ({}, 500, 500 * 1024),
        # No limit, or one that is not used up.
        ({"memory.max": "max", "memory.current": "900000"}, 500, 500 * 1024),
        (VERSION_2, None, 100_000),
        (VERSION_2, 2000, 100_000),
        (VERSION_1, 2000, 100_000),
        # The machine has less than the container may take.
        (VERSION_2, 50, 50 * 1024),
        # The cache of files is there for the taking; what is in use is not.
        ({**VERSION_2, "memory.stat": "anon 1\nfile 700000\ninactive_file 300000\nactive_file 400000"}, 2000, 400_000),
        ({**VERSION_1, "memory/memory.stat": "inactive_file 7\ntotal_rss 1"}, 2000, 100_007),
        ({**VERSION_1, "memory/memory.stat": "total_inactive_file 300000"}, 2000, 400_000),
        # A moment over the limit.
        ({"memory.max": "1000000", "memory.current": "1000500"}, 2000, 0),
        ({"memory.max": "1000000"}, 2000, 1_000_000),
    ],
)
def test_free_memory(set_up, files, available_kib, free):
    set_up(files, available_kib)
    assert free_memory() == free


def test_what_may_not_be_read_says_nothing(set_up, monkeypatch):
    set_up({**VERSION_2, "cpu.max": "200000 100000"}, 500)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(machine.Path, "read_text", refuse)
    assert (count_cores(), memory_limit(), free_memory()) == (8, 1000 * PAGE, 1000 * PAGE)
    assert name_processor().split()[0] == platform.machine()


def test_free_memory_of_this_machine():
    assert 0 < free_memory() <= memory_limit()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_is_freed_goes_back_to_the_system():
    # Blocks below what glibc would learn to keep, freed while something lives above them.
    code = (
        "import sys; from attnserve.machine import bound_malloc\n"
        "bound_malloc() if sys.argv[1] == 'bound' else None\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "before, kept = resident(), []\n"
        "for _ in range(3): bytearray(24 << 20)\n"
        "for _ in range(4):\n"
        "    block = bytearray(20 << 20); kept.append(bytearray(100_000)); del block\n"
        "print(resident() - before)\n"
    )
    grown = {
        name: int(subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True).stdout)
        for name in ("bound", "unbound")
    }
    assert grown["bound"] < 2 << 20
    # Else this test shows nothing.
    assert grown["unbound"] > 15 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_holes_in_a_heap_go_back_to_the_system_when_it_is_trimmed():
    code = (
        "from attnserve.machine import bound_malloc, trim_malloc\n"
        "bound_malloc()\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "blocks = [bytearray(50_000) for _ in range(1000)]\n"
        "del blocks[::2], blocks[:-1]\n"
        "holed = resident(); trim_malloc(); print(holed - resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The last block lives at the top, and all below it is free.
    assert int(done.stdout) > 40 << 20
