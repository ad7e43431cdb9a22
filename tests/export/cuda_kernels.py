"""What ONNX Runtime's CUDA provider has kernels for, of the ops that exported graphs are made of.

From the table that ONNX Runtime publishes (docs/OperatorKernels.md of its repository), read in November 2026. An op
or a type that is missing there is computed on the CPU, with copies to and from it; in bfloat16, which the CPU has not,
the graph cannot be loaded at all.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper, inliner, shape_inference

BOOL, INT8, INT32, INT64 = TensorProto.BOOL, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64
# Besides float64, which no graph has.
WIDE = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
FLOATS = WIDE | {TensorProto.BFLOAT16}
NUMBERS = FLOATS | {INT32, INT64}
ANY = NUMBERS | {BOOL, INT8}

KERNELS: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(("Abs", "Add", "Div", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "ReduceSum", "Sub"), NUMBERS),
    **dict.fromkeys(("Erf", "Exp", "Gelu", "Gemm", "LayerNormalization", "MatMul", "Sigmoid", "Softmax"), FLOATS),
    **dict.fromkeys(("RMSNormalization", "Relu", "Sqrt", "Tanh"), FLOATS),
    **dict.fromkeys(("Cos", "Log", "Reciprocal", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "Sin"), WIDE),
    **dict.fromkeys(("Clip", "CumSum", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), WIDE | {INT64}),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "TopK"), WIDE | {INT64}),
    **dict.fromkeys(("And", "Not", "Or"), frozenset({BOOL})),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Gather", "GatherElements", "Identity", "If", "Loop", "Reshape"), ANY),
    **dict.fromkeys(
        ("ScatterElements", "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Trilu", "Unsqueeze"), ANY
    ),
    "ConstantOfShape": frozenset({INT64}),
    "DequantizeLinear": frozenset({INT8}),
    "Equal": WIDE | {INT64, BOOL},
    "GatherND": ANY - {INT8, INT32},
    "IsInf": FLOATS,
    "IsNaN": FLOATS,
    "Range": frozenset({TensorProto.FLOAT, INT64}),
    "Where": NUMBERS,
}
# Functions of ONNX: what is computed is another op.
FUNCTIONS = {"CastLike": "Cast"}


def list_missing(path: Path) -> list[str]:
    """Nodes of a graph, function bodies inlined, that no CUDA kernel computes: each an op and its type."""
    model = shape_inference.infer_shapes(inliner.inline_local_functions(onnx.load(path)))
    return sorted(set(_list_missing(model.graph, {})))


def _list_missing(graph: onnx.GraphProto, outer: Mapping[str, int]) -> Iterator[str]:
    types = dict(outer)
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _list_missing(attribute.g, types)
        if node.op_type == "Constant":
            continue
        # Of whichever input it is that the type of a kernel goes by; the loop's own first one is a count.
        typed = {"Where": 1, "Loop": 2}.get(node.op_type, 0)
        found = types[node.input[typed]]
        if node.domain or found not in KERNELS.get(FUNCTIONS.get(node.op_type, node.op_type), ()):
            yield f"{node.domain}{node.op_type} of {helper.tensor_dtype_to_string(found)}"
