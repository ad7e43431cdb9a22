"""Multiply-adds that this core does at most: as many independent ones as it can have under way."""

import ctypes
from pathlib import Path

ROUNDS = 1_000_000


class Peak:
    """Multiply-adds of float32 with the vectors that kernels use, and nothing else."""

    def __init__(self, library: Path) -> None:
        self._multiply_add = ctypes.CDLL(str(library)).attnserve_multiply_add
        self._multiply_add.restype = ctypes.c_int64
        self._multiply_add.argtypes = (ctypes.c_int64, ctypes.POINTER(ctypes.c_float))
        self.num_multiplications = self()
        """Of one call."""

    def __call__(self) -> int:
        """Run, in this thread."""
        return int(self._multiply_add(ROUNDS, ctypes.c_float(0.999)))
