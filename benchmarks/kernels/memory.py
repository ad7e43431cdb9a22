"""Memory that one call takes at most, in a process of its own."""

import subprocess
import sys
from pathlib import Path

# Not `getrusage`, whose peak is that of the process before it was this one, too.
MEASURE = """
import sys
from pathlib import Path
from benchmarks.kernels.graphs import Shape, our_attention

def read(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

length, library = int(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None
# Warm: what is loaded and allocated whatever the length is.
our_attention("ExpressiveAttention", Shape(lengths=(64,), head_size=64, causal=True), library)()
call = our_attention("ExpressiveAttention", Shape(lengths=(length,), head_size=64, causal=True), library)
# Imports have needed more than is needed now: what follows is a new peak.
Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS:")
call()
print(read("VmHWM:") - before)
"""


def measure_memory(length: int, library: Path | None) -> int:
    """Bytes that attention over one causal sequence of 8 heads x 64 takes beyond its inputs."""
    command = [sys.executable, "-c", MEASURE, str(length), "" if library is None else str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)
