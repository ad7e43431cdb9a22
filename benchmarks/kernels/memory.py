"""Memory that one call takes at most, in a process of its own."""

import subprocess
import sys
from pathlib import Path

MEASURE = """
import resource, sys
from pathlib import Path
from benchmarks.kernels.graphs import Shape, our_attention

library = Path(sys.argv[2]) if sys.argv[2] else None
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# Warm: what is loaded and allocated whatever the length is.
our_attention("ExpressiveAttention", Shape(lengths=(64,), head_size=64, causal=True), library)()
call = our_attention("ExpressiveAttention", Shape(lengths=(int(sys.argv[1]),), head_size=64, causal=True), library)
before = peak()
call()
print((peak() - before) * 1024)
"""


def measure_memory(length: int, library: Path | None) -> int:
    """Bytes that attention over one causal sequence of 8 heads x 64 takes beyond its inputs."""
    command = [sys.executable, "-c", MEASURE, str(length), "" if library is None else str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)
