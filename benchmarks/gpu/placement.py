"""Where ONNX Runtime ran every node of a prediction, by its own profile."""

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from attnserve.bundle import LOGITS, MODEL_FILE, ROWS
from attnserve.cuda import CUDA_PROVIDER
from attnserve.packing import pack
from attnserve.runtime import Runtime
from attnserve.service.engine import make_sequence
from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.looking import look_at_all
from benchmarks.gpu.plan import Plan

LENGTHS = (5, 17, 60)
OPS = ("DotProductAttention", "ExpressiveAttention", "EllipticalMetric")
# How ONNX Runtime names what it makes of a function body, and of the branches of an If that it has decided.
BODY_PREFIXES = ("_inlfunc_", "_if_then_branch", "_if_else_branch")
SUFFIX = "_kernel_time"
TO_GPU, FROM_GPU = "MemcpyFromHost", "MemcpyToHost"
ON_CPU = "this is the CPU's profile"


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """One node's run."""

    name: str
    op: str
    provider: str
    tensors: tuple[tuple[str, int], ...]
    """Element type and number of axes, of inputs and outputs."""

    @property
    def is_attention(self) -> bool:
        """Whether it is of a function body, or a kernel in its place: models have no other functions."""
        return self.op in OPS or self.name.startswith(BODY_PREFIXES)

    @property
    def is_of_shapes(self) -> bool:
        """Whether it does no more than arithmetic on sizes, which is the CPU's: it decides what is launched."""
        *inputs, output = self.tensors or (("float", 0),)
        shapes = inputs if self.op not in ("Shape", "Size") else []
        return all(kind in ("int64", "int32") and axes <= 1 for kind, axes in (*shapes, output))

    @property
    def is_on_cuda(self) -> bool:
        return self.provider == CUDA_PROVIDER


def run(plan: Plan) -> Iterator[Finding]:
    yield from look_at_all(plan, plan.bundles(), find)


def find(plan: Plan, bundle: Bundle) -> Iterator[Finding]:
    gather = find_gather(onnx.load(bundle.folder / MODEL_FILE, load_external_data=False).graph)
    yield judge(bundle, plan.device, read_profile(profile(bundle, plan.device)), gather)


def profile(bundle: Bundle, device: str) -> list[Mapping[str, Any]]:
    """The events of one prediction for a batch of three sequences, by a session as it is served."""
    with tempfile.TemporaryDirectory() as work, profiled_sessions(Path(work) / "profile"):
        runtime = Runtime(bundle.folder, device=device, num_threads=1)
        generator = np.random.default_rng(0)
        lengths = [min(length, runtime.manifest.max_length) for length in LENGTHS]
        packed = pack([make_sequence(runtime.manifest, length, generator) for length in lengths])
        runtime.run(packed, np.cumsum(packed.lengths) - 1, [LOGITS])
        events: list[Mapping[str, Any]] = json.loads(Path(runtime.session.end_profiling()).read_text("utf-8"))
        return events


@contextlib.contextmanager
def profiled_sessions(prefix: Path) -> Iterator[None]:
    """Sessions that are opened meanwhile write a profile each, and are else what they would be.

    A service has no use for profiles, so nothing in attnserve can be told to write one.
    """
    import onnxruntime

    plain = onnxruntime.SessionOptions

    class Profiling(plain):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(prefix)

    onnxruntime.SessionOptions = Profiling
    try:
        yield
    finally:
        onnxruntime.SessionOptions = plain


def read_profile(events: Iterable[Mapping[str, Any]]) -> list[NodeRun]:
    """What ran, of everything that a profile tells."""
    return [_read_node(event) for event in events if event.get("cat") == "Node" and event["name"].endswith(SUFFIX)]


def _read_node(event: Mapping[str, Any]) -> NodeRun:
    arguments = event["args"]
    entries = [*arguments.get("input_type_shape", ()), *arguments.get("output_type_shape", ())]
    return NodeRun(
        name=event["name"].removesuffix(SUFFIX),
        op=arguments["op_name"],
        provider=arguments.get("provider", ""),
        tensors=tuple((kind, len(shape)) for entry in entries for kind, shape in entry.items()),
    )


def find_gather(graph: onnx.GraphProto) -> str | None:
    """The name of the node that gathers `rows`; None of a model that has no such input.

    Raises:
        ValueError: there is the input, and no such node.
    """
    if all(entry.name != ROWS for entry in graph.input):
        return None
    names = {ROWS}
    for node in graph.node:
        if names.isdisjoint(node.input):
            continue
        if node.op_type in ("Gather", "GatherND"):
            return str(node.name)
        # Indices are brought into form before.
        names.update(node.output)
    raise ValueError(f"{ROWS}: expected a node that gathers by it, got none")


def judge(bundle: Bundle, device: str, nodes: Sequence[NodeRun], gather: str | None) -> Finding:
    """The law that attention and `rows` are CUDA's.

    Args:
        bundle: whose run it is.
        device: that was asked for.
        nodes: what ran.
        gather: name of the node that gathers `rows`.
    """
    attention = [node for node in nodes if node.is_attention]
    ours = [node for node in attention if node.is_on_cuda]
    strays = [node for node in attention if not node.is_on_cuda and not node.is_of_shapes]
    others = Counter(node.op for node in nodes if not (node.is_attention or node.is_on_cuda or node.is_of_shapes))
    gathers = [node for node in nodes if node.name == gather]
    copies = Counter(node.op for node in nodes)
    cells = {
        **bundle.cells,
        "nodes": str(len(nodes)),
        "of attention": str(len(attention)),
        "on CUDA": str(len(ours)),
        "shapes, on the CPU": str(len(attention) - len(ours) - len(strays)),
        "`rows`": "none" if gather is None else ", ".join(node.provider for node in gathers),
        "copies to, from the GPU": f"{copies[TO_GPU]}, {copies[FROM_GPU]}",
        "others on the CPU": ", ".join(f"{count} {op}" for op, count in sorted(others.items())),
    }
    if device == "cpu":
        return Finding(cells=cells, unjudged=ON_CPU)
    broken = []
    if not attention:
        broken.append("no node of attention ran")
    if strays:
        broken.append(f"{len(strays)} nodes of attention ran elsewhere, such as {_describe(strays[0])}")
    if gather is not None and not gathers:
        broken.append(f"{gather}, which gathers rows, did not run by this name")
    broken += [f"rows are gathered elsewhere: {_describe(node)}" for node in gathers if not node.is_on_cuda]
    return Finding(cells=cells, broken=tuple(broken))


def _describe(node: NodeRun) -> str:
    return f"{node.name} ({node.op}, {node.provider})"
