"""The parts, in the order of what they are worth: whoever runs out of time has the first ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.gpu import check, engine, graphs, kernels, memory, placement, servers
from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Part:
    run: Callable[[Plan], Iterator[Finding]]
    bundles: Callable[[Plan], list[Bundle]]
    """That it looks at."""
    share: float
    """Of the time, beside those of the others."""
    law: str
    """What is done, and what has to be so; for the report."""


PARTS: Mapping[str, Part] = {
    "check": Part(
        run=check.run,
        bundles=Plan.bundles,
        share=2.0,
        law="`attnserve check` of every bundle: golden is answered on this device within the certificate.",
    ),
    "placement": Part(
        run=placement.run,
        bundles=Plan.bundles,
        share=1.5,
        law="ONNX Runtime's profile of one run of a batch: every node of attention runs on CUDA, and so does the one "
        "that gathers `rows`. Arithmetic on shapes is the CPU's. Copies are counted.",
    ),
    "graphs": Part(
        run=graphs.run,
        bundles=Plan.bundles,
        share=2.0,
        law="Batches of random sizes, answered by CUDA graphs that were recorded of others: no logit is further from a "
        "plain run of the same padded batch than the certificate allows.",
    ),
    "memory": Part(
        run=memory.run,
        bundles=Plan.timed_bundles,
        share=2.0,
        law=f"Requests of random lengths in batches of 1-{memory.MAX_SEQUENCES}. After each tenth the engine gives "
        "back what it needed, as when it is idle; what it holds of the GPU then is in the second half what it was in "
        f"the first, up to {memory.MOST_GROWTH:.0%} or {memory.LEAST_ALLOWED_BYTES // memory.MIB} MiB.",
    ),
    "engine": Part(
        run=engine.run,
        bundles=Plan.timed_bundles,
        share=3.5,
        law="Sequences of uniform lengths through queue and engine, then the batches that were formed of them through "
        "a bare session with bound inputs and outputs; wall time, medians of rounds. Asked all at once, it is at least "
        f"{engine.LEAST_RATIO} of bare.",
    ),
    "servers": Part(
        run=servers.run,
        bundles=Plan.timed_bundles,
        share=4.0,
        law="`attnserve bench --closed` of whole servers: attnserve as it is started by default, and the same module "
        "in PyTorch behind plain FastAPI, which packs whatever waits into its next batch. All give the same logits.",
    ),
    "kernels": Part(
        run=kernels.run,
        bundles=lambda _: [],
        share=3.0,
        law="The CUDA kernels' own tests: each is within its tolerance of float64.",
    ),
}
