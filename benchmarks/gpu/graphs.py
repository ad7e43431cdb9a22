"""Answers of CUDA graphs beside those of plain runs: of the same batch, padded to the same sizes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.buckets import find_bucket, pad
from attnserve.bundle import LOGITS, Manifest
from attnserve.cuda import CudaOptions
from attnserve.golden import largest_difference
from attnserve.interrupt import Interrupt
from attnserve.packing import Packed, pack
from attnserve.recordings import MAX_CELLS, MAX_ROWS
from attnserve.runtime import Runtime
from attnserve.service.engine import make_sequence
from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.looking import look_at_all
from benchmarks.gpu.plan import Plan

NO_GRAPHS = "the CPU has no graphs: the recorded tensors were run plainly"
MAX_SEQUENCES = 8
MOST_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Of one bundle."""

    state: str
    """`Runtime.graphs` after all runs."""
    num_recorded: int
    num_replays: int
    num_equal: int
    """Replays equal to the plain run bit for bit."""
    difference: float
    """Largest, of a logit."""
    allowed: float
    """What the certificate allows, from the truth."""


def run(plan: Plan) -> Iterator[Finding]:
    yield from look_at_all(plan, plan.bundles(), find)


def find(plan: Plan, bundle: Bundle) -> Iterator[Finding]:
    yield judge(bundle, plan.device, compare(plan, bundle))


def compare(plan: Plan, bundle: Bundle) -> Compared:
    """Record graphs of some sizes, and replay each with other inputs, in another order."""
    options = CudaOptions(num_graphs=plan.num_sizes)
    runtime = Runtime(bundle.folder, device=plan.device, num_threads=1, binds=True, cuda=options)
    manifest, generator = runtime.manifest, np.random.default_rng(0)
    differences = []
    num_recorded = 0
    for lengths in draw_sizes(plan.num_sizes, manifest.max_length, generator):
        # The first batch of a size is run plainly, the second recorded.
        for turn in range(2 + plan.num_replays):
            packed = draw_batch(manifest, generator.permutation(lengths), generator)
            rows = np.cumsum(packed.lengths) - 1
            answer = runtime.run(packed, rows, [LOGITS])[LOGITS]
            padded = pad(packed, rows, find_bucket(packed, len(rows), manifest.max_steps))
            # What can be interrupted is never recorded.
            plain = runtime.run(padded.packed, padded.rows, [LOGITS], interrupt=Interrupt())[LOGITS]
            if turn > 1:
                differences.append(largest_difference(answer, plain[: len(answer)]))
        num_recorded += 1
        if runtime.graphs != "on":
            break
    return Compared(
        state=runtime.graphs,
        num_recorded=num_recorded,
        num_replays=len(differences),
        num_equal=differences.count(0.0),
        difference=max(differences, default=0.0),
        allowed=manifest.certificate.logits.allowed,
    )


def judge(bundle: Bundle, device: str, compared: Compared) -> Finding:
    broken = []
    if compared.state != "on":
        broken.append("it has no graphs; the log of this run says why")
    elif not compared.num_replays:
        broken.append("nothing was replayed")
    if not compared.difference <= compared.allowed:
        broken.append("a graph answers otherwise than a plain run")
    return Finding(
        cells={
            **bundle.cells,
            "recorded": str(compared.num_recorded),
            "replays": f"{compared.num_replays:,}",
            "equal bit for bit": f"{compared.num_equal:,}",
            "largest difference": f"{compared.difference:.1e} of {compared.allowed:.1e}",
        },
        broken=tuple(broken),
        unjudged=NO_GRAPHS if device == "cpu" else None,
    )


def draw_sizes(count: int, max_length: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Lengths of so many batches of different sizes, or of fewer if there are not as many; each fits a graph."""
    found: dict[object, NDArray[np.int64]] = {}
    for _ in range(MOST_DRAWS * count):
        num_sequences = int(generator.integers(1, MAX_SEQUENCES + 1))
        # As many short ones as long ones.
        longest = min(max_length, int(2 ** generator.uniform(0, np.log2(MAX_CELLS / num_sequences) / 2)))
        lengths = generator.integers(1, longest + 1, num_sequences)
        packed = pack([np.zeros(length, np.int64) for length in lengths])
        bucket = find_bucket(packed, num_sequences, max_length)
        if bucket.num_rows <= MAX_ROWS and bucket.num_cells <= MAX_CELLS:
            found.setdefault(bucket, lengths)
        if len(found) == count:
            break
    return list(found.values())


def draw_batch(manifest: Manifest, lengths: NDArray[np.int64], generator: np.random.Generator) -> Packed:
    return pack([make_sequence(manifest, int(length), generator) for length in lengths])
