"""Page-locked memory of the host, which a GPU reads and writes by itself.

What is copied from or to other memory goes through a buffer of the driver, piece by piece, and a core is busy with it.
Arrays made here are arrays like any other. CUDA knows by their address that they are page-locked, so ONNX Runtime need
not be told, and nothing has to be copied out of them.

https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html. None of this has run on a GPU: docs/gpu.md.
"""

import ctypes
import functools
import logging
import math
import sys
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from attnserve.buckets import round_up
from attnserve.packing import Empty
from attnserve.traffic import CUDA

log = logging.getLogger(__name__)

# What is smaller is copied at once, wherever it lies.
MIN_BYTES = 1 << 16
# For each GPU: such memory can neither be swapped nor be had by anybody else.
MAX_BYTES = 1 << 28
# cudaHostAllocPortable: page-locked for all GPUs.
PORTABLE = 1


class Pinned:
    """Page-locked blocks. One whose last array is gone is used again; none is freed before there is need of its room.

    Args:
        library: CUDA's runtime.
        gpu: that is asked for them. CUDA takes memory on it for that, so it should be one that is used.
        max_bytes: of all blocks. Arrays that do not fit are made of other memory.
    """

    def __init__(self, library: ctypes.CDLL, gpu: int, max_bytes: int = MAX_BYTES) -> None:
        self._library = library
        self._gpu = gpu
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # By size. Garbage collection adds to them in any thread, and so without the lock.
        self._free: defaultdict[int, deque[int]] = defaultdict(deque)
        self.num_bytes = 0
        """Page-locked now, by this process."""

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array, page-locked if it is large enough to gain by that and there is room; not within `CUDA.run()`."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if num_bytes < MIN_BYTES:
            return np.empty(shape, dtype)
        size = round_up(num_bytes)
        address = self._take(size)
        if address is None:
            return np.empty(shape, dtype)
        block = (ctypes.c_ubyte * size).from_address(address)
        # All arrays of this memory keep the block alive.
        weakref.finalize(block, self._free[size].append, address).atexit = False
        return np.ctypeslib.as_array(block)[:num_bytes].view(dtype).reshape(shape)

    def _take(self, size: int) -> int | None:
        with self._lock:
            try:
                return self._free[size].pop()
            except IndexError:
                pass
            # While a graph is recorded, CUDA refuses to allocate.
            with CUDA.run():
                self._make_room(size)
                return self._allocate(size)

    def _allocate(self, size: int) -> int | None:
        if self.num_bytes + size > self._max_bytes:
            return None
        pointer = ctypes.c_void_p()
        # Of this thread. ONNX Runtime chooses anew in every run.
        self._library.cudaSetDevice(ctypes.c_int(self._gpu))
        code = self._library.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE))
        if code:
            # Or the next node fails by it that ONNX Runtime runs in this thread: after each it asks for the last error.
            self._library.cudaGetLastError()
            # What it would be used for works without, only slower. It may be said again, of every batch.
            log.debug("cudaHostAlloc: error %d for %d bytes", code, size)
            return None
        self.num_bytes += size
        return pointer.value

    def _make_room(self, size: int) -> None:
        """Free blocks that nobody uses, largest first, until one of this size fits, or there are no more."""
        for other in sorted(self._free, reverse=True):
            while self.num_bytes + size > self._max_bytes:
                try:
                    address = self._free[other].pop()
                except IndexError:
                    break
                self._library.cudaFreeHost(ctypes.c_void_p(address))
                self.num_bytes -= other


@functools.cache
def find_empty(gpu: int) -> Empty:
    """How arrays are made that a GPU reads and writes: of page-locked memory, where CUDA's runtime is found.

    To be asked once there is a session on it, which has loaded that.
    """
    from onnxruntime.capi import build_and_package_info

    version: str = getattr(build_and_package_info, "cuda_version", "")
    library = _load_runtime(version.split(".")[0])
    return np.empty if library is None else Pinned(library, gpu).empty


def _load_runtime(version: str) -> ctypes.CDLL | None:
    """The one that ONNX Runtime was built for and has loaded: another one would know nothing of its GPUs."""
    name = f"cudart64_{version}.dll" if sys.platform == "win32" else f"libcudart.so.{version}"
    try:
        return ctypes.CDLL(name)
    except OSError:
        log.warning("without page-locked memory: %s cannot be loaded", name)
        return None
