"""What ONNX Runtime would copy between a GPU and the CPU in the middle of a run, as far as its source tells.

Sizes are on the CPU, and arithmetic with them is done there. So is every node that reads nothing but such numbers,
constants and inputs of the graph, unless its CUDA kernel reads them on the CPU by itself: `GetCpuPreferredNodes` in
fallback_cpu_capability.cc of ONNX Runtime, read in November 2026. What reads from the other side is copied, once for
every layer, and a run with copies cannot be recorded as a CUDA graph.
"""

from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto

SIZES = ("Shape", "Size")
# Inputs that CUDA's kernels read on the CPU.
READ_ON_CPU = {
    "ConstantOfShape": {0},
    "CumSum": {1},
    "Expand": {1},
    "If": {0},
    "Loop": {0, 1},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Tile": {1},
    "TopK": {1},
    "Unsqueeze": {1},
}
NEVER_ON_CPU = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def read_as_placed(path: Path, work: Path) -> onnx.GraphProto:
    """A graph as it is when nodes are given to providers: bodies inlined, and what is constant computed.

    Args:
        path: of the model, which the CPU can load.
        work: a folder.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(work / "placed.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def list_copies(graph: onnx.GraphProto) -> list[str]:
    """Names of tensors that are copied, of a graph in topological order."""
    inputs = {entry.name for entry in graph.input}
    constants = {tensor.name for tensor in graph.initializer}
    types = {entry.name: entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.value_info)}
    on_cpu: set[str] = set()
    copied: set[str] = set()
    for node in graph.node:
        read = {place: name for place, name in enumerate(node.input) if name and name not in constants}
        by_itself = READ_ON_CPU.get(node.op_type, set())
        if node.op_type in SIZES:
            # Wherever its input is: that is not read.
            on_cpu.update(node.output)
            continue
        is_cpus = bool(on_cpu.intersection(read.values())) and all(
            types.get(name) not in NEVER_ON_CPU and (name in inputs or (name in on_cpu and place not in by_itself))
            for place, name in read.items()
        )
        if is_cpus:
            on_cpu.update(node.output)
        copied.update(name for place, name in read.items() if (is_cpus or place in by_itself) != (name in on_cpu))
    return sorted(copied)
