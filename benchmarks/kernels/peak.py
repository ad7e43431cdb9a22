"""Multiply-adds per second that this core does at most: as many independent ones as it can have under way."""

import ctypes
from pathlib import Path

from benchmarks.kernels.timing import time_calls

ROUNDS = 1_000_000


def measure_peak(library: Path, rounds: int) -> float:
    """Multiply-adds of float32 per CPU second, with the vectors that kernels use."""
    multiply_add = ctypes.CDLL(str(library)).attnserve_multiply_add
    multiply_add.restype, multiply_add.argtypes = ctypes.c_int64, (ctypes.c_int64, ctypes.POINTER(ctypes.c_float))
    result = ctypes.c_float(0.999)
    number = multiply_add(ROUNDS, result)
    seconds = time_calls({"peak": lambda: multiply_add(ROUNDS, result)}, rounds)
    return float(number / seconds["peak"])
