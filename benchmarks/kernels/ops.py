"""The ops: kernel beside function body, ONNX Runtime's fused softmax attention and the core's peak."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.kernels.graphs import Shape, fused_attention, our_attention
from benchmarks.kernels.peak import Peak
from benchmarks.kernels.timing import time_calls

OPS = ("ExpressiveAttention", "DotProductAttention")
MIXED = tuple(np.random.default_rng(0).integers(8, 513, 32).tolist())
SHAPES = (
    *(Shape(lengths=(length,), head_size=size, causal=True) for size in (32, 64) for length in (256, 1024, 4096)),
    *(Shape(lengths=(length,), head_size=64, causal=False) for length in (256, 1024, 4096)),
    *(Shape(lengths=MIXED, head_size=size, causal=True) for size in (32, 64)),
)


@dataclass(frozen=True, kw_only=True)
class OpFigures:
    """One line of the table, in CPU seconds of one thread."""

    op: str
    shape: Shape
    kernel: float
    body: float
    fused: dict[str, float]
    """By ONNX Runtime's op; none for batches of several sequences."""
    peak: float
    """Multiply-adds per second that the core did at most, in the same rounds."""

    @property
    def body_ratio(self) -> float:
        """How many times longer the body takes."""
        return self.body / self.kernel

    @property
    def peak_share(self) -> float:
        """Multiply-adds of both products per second, by those that the core can do at most."""
        return self.shape.num_multiplications / self.kernel / self.peak

    @property
    def fused_ratio(self) -> float | None:
        """The kernel's time by that of the faster of ONNX Runtime's ops."""
        return self.kernel / min(self.fused.values()) if self.fused else None


def measure_op(op: str, shape: Shape, library: Path, *, peak: Peak, rounds: int) -> OpFigures:
    """Time one op on one shape."""
    ours = {"kernel": our_attention(op, shape, library), "body": our_attention(op, shape, None)}
    for call in ours.values():
        call()
    np.testing.assert_allclose(ours["kernel"].output.numpy(), ours["body"].output.numpy(), rtol=0, atol=1e-5)
    fused = fused_attention(shape) if len(shape.lengths) == 1 else {}
    seconds = time_calls({**ours, **fused, "peak": peak}, rounds)
    return OpFigures(
        op=op,
        shape=shape,
        kernel=seconds["kernel"],
        body=seconds["body"],
        fused={name: seconds[name] for name in fused},
        peak=peak.num_multiplications / seconds["peak"],
    )


def format_ops(figures: list[OpFigures]) -> str:
    """A table in markdown; in brackets what the ratios would be if a kernel did nothing but multiply, at the peak."""
    lines = [
        "| op | sequences | head size | | kernel ms | share of peak | body / kernel | kernel / fused |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in figures:
        shape = line.shape
        sequences = (
            str(shape.lengths[0])
            if len(shape.lengths) == 1
            else f"{len(shape.lengths)} of {min(shape.lengths)}-{max(shape.lengths)}"
        )
        direction = "causal" if shape.causal else "bidirectional"
        share, fused = line.peak_share, line.fused_ratio
        lines.append(
            f"| {line.op} | {sequences} | {shape.head_size} | {direction} | {line.kernel * 1e3:.3f} | {share:.0%} | "
            f"{line.body_ratio:.1f} ({line.body_ratio / share:.1f}) | "
            + (f"{fused:.2f} ({fused * share:.2f}) |" if fused is not None else "|")
        )
    return "\n".join(lines)
