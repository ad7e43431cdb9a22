"""Coding: weights in the type a client wants them in, and what the worst row lost by it.

The graphs are `export/coding.py`'s. They run in blocks, so that what they need besides the answer stays small, on the
thread that calls.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

CODINGS = ("float32", "float16", "uint8_sqrt")
"""Types of weights; of `uint8_sqrt` a weight is its row's `scale` x (code / 255)^2."""
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "uint8_sqrt": np.dtype(np.uint8),
}
SCALE = "scale"
MAX_BLOCK_NUMBERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Coded:
    """An array as it is sent."""

    values: NDArray[Any]
    """The shape of what was coded."""
    scale: NDArray[np.float32] | None
    """Of each row, of `uint8_sqrt`."""
    row_error: float
    """Half the sum of absolute differences of the row that lost most; 0 of float32, infinite beyond float16."""


def code(array: NDArray[np.float32], coding: str) -> Coded:
    """An array [..., K] of rows in another type.

    Args:
        array: float32; not negative where `coding` is `uint8_sqrt`.
        coding: one of `CODINGS`.
    """
    if coding == "float32":
        return Coded(values=array, scale=None, row_error=0.0)
    rows = np.ascontiguousarray(array, np.float32).reshape(math.prod(array.shape[:-1]), array.shape[-1])
    values = np.empty(rows.shape, DTYPES[coding])
    scale = np.empty(len(rows), np.float32) if coding == "uint8_sqrt" else None
    row_error = 0.0
    # ONNX Runtime reduces empty tensors to a wrong shape.
    block = max(1, MAX_BLOCK_NUMBERS // max(1, rows.shape[1])) if rows.size else 0
    for start in range(0, len(rows), block) if block else ():
        part = slice(start, start + block)
        outputs = {"coded": values[part], **({} if scale is None else {"scale": scale[part]})}
        error = _run(coding, rows[part], outputs)
        # NaN where infinity was subtracted from itself.
        row_error = max(row_error, math.inf if math.isnan(error) else error)
    return Coded(
        values=values.reshape(array.shape),
        scale=None if scale is None else scale.reshape(array.shape[:-1]),
        row_error=row_error,
    )


def widen(array: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """An array [..., K] of float16 in float32, or one of float32 as it is."""
    if array.dtype == np.float32:
        return array
    rows = np.ascontiguousarray(array).reshape(math.prod(array.shape[:-1]), array.shape[-1])
    (widened,) = _open("float32").run(None, {"numbers": rows})
    return widened.reshape(array.shape)  # type: ignore[no-any-return]


def _run(coding: str, rows: NDArray[np.float32], outputs: dict[str, NDArray[Any]]) -> float:
    """Run a graph into arrays that are there already; returns the row error."""
    session = _open(coding)
    binding = session.io_binding()
    binding.bind_cpu_input("weights", rows)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("row_error", "cpu")
    session.run_with_iobinding(binding)
    return float(binding.get_outputs()[-1].numpy())


@functools.cache
def _open(coding: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # As in attnserve/sessions.py.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    path = Path(__file__).with_name(f"{coding}.onnx")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
