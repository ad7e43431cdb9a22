"""What NVIDIA's driver says of this machine, by NVML, the library it brings. Needs no CUDA and no GPU to ask.

https://docs.nvidia.com/deploy/nvml-api: every function answers 0, or the number of an error.
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
# Of what the C library says of a library that is nowhere.
MISSING = "No such file or directory"
NAME_BYTES = UUID_BYTES = 96


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of the machine, or a part of one that is divided, visible to CUDA or not."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: str
    """CUDA compute capability: 8.0 is sm_80."""
    uuid: str
    busy: float | None
    """Share of the last moment in which it computed; None of those that do not tell, as parts of a GPU do not."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver that answers."""

    version: str
    cuda: str
    """Newest CUDA it knows."""
    gpus: tuple[Gpu, ...]


class DriverError(RuntimeError):
    """There is a driver, and it does not answer."""


class _Utilization(ctypes.Structure):
    """`nvmlUtilization_t`, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def read_driver(library: str = LIBRARY) -> Driver | None:
    """Ask the driver for itself and its GPUs; None if there is none.

    Raises:
        DriverError: it does not answer.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError as error:
        # A file that is there and is no library, or somebody else's, is no machine without a GPU.
        if sys.platform == "linux" and MISSING not in str(error):
            raise DriverError(f"its library cannot be loaded: {error}") from None
        return None
    _call(nvml, "nvmlInit_v2")
    try:
        version, cuda, count = ctypes.create_string_buffer(NAME_BYTES), ctypes.c_int(), ctypes.c_uint()
        _call(nvml, "nvmlSystemGetDriverVersion", version, ctypes.c_uint(NAME_BYTES))
        _call(nvml, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        return Driver(
            version=version.value.decode("utf-8", "replace"),
            # 13020 is 13.2.
            cuda=f"{cuda.value // 1000}.{cuda.value % 1000 // 10}",
            gpus=tuple(gpu for index in range(count.value) for gpu in _read_gpus(nvml, index)),
        )
    finally:
        _find(nvml, "nvmlShutdown")()


def ask_driver(read: Callable[[], Driver | None] = read_driver) -> "Future[Driver | None]":
    """What the driver says, once it says something: one that has lost a GPU may never answer.

    It is asked in a thread that nobody waits for, at the end of the process neither.
    """
    asked: Future[Driver | None] = Future()

    def ask() -> None:
        try:
            asked.set_result(read())
        except Exception as error:
            asked.set_exception(error)

    threading.Thread(target=ask, name="gpus", daemon=True).start()
    return asked


def gpu_memory(library: str = LIBRARY) -> int:
    """Bytes of the smallest GPU; 0 where no driver says so."""
    return min((gpu.memory_bytes for gpu in _find_gpus(library)), default=0)


def name_gpu(library: str = LIBRARY) -> str:
    """What GPUs there are, by their names; empty where no driver says so."""
    return ", ".join(sorted({gpu.name for gpu in _find_gpus(library)}))


def _find_gpus(library: str) -> tuple[Gpu, ...]:
    try:
        driver = read_driver(library)
    except DriverError:
        return ()
    return () if driver is None else driver.gpus


def _read_gpus(nvml: ctypes.CDLL, index: int) -> list[Gpu]:
    """A GPU, or the parts that it is divided into: CUDA sees those, and of the whole they may not ask (MIG)."""
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    _call(nvml, "nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
    return [
        _read_gpu(nvml, one, capability=f"{major.value}.{minor.value}") for one in _find_parts(nvml, device) or [device]
    ]


def _find_parts(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    """Handles of the parts of a GPU; none if it is whole, as those are of drivers that know no parts."""
    count, parts = ctypes.c_uint(), []
    if hasattr(nvml, "nvmlDeviceGetMigDeviceHandleByIndex") and hasattr(nvml, "nvmlDeviceGetMaxMigDeviceCount"):
        nvml.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(count))
    for index in range(count.value):
        part = ctypes.c_void_p()
        # Numbers have gaps: NVML_ERROR_NOT_FOUND. While a GPU is whole, there is none at any.
        if not nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, ctypes.c_uint(index), ctypes.byref(part)):
            parts.append(part)
    return parts


def _read_gpu(nvml: ctypes.CDLL, device: ctypes.c_void_p, *, capability: str) -> Gpu:
    name, memory = ctypes.create_string_buffer(NAME_BYTES), _Memory()
    uuid, utilization = ctypes.create_string_buffer(UUID_BYTES), _Utilization()
    _call(nvml, "nvmlDeviceGetName", device, name, ctypes.c_uint(NAME_BYTES))
    _call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    _call(nvml, "nvmlDeviceGetUUID", device, uuid, ctypes.c_uint(UUID_BYTES))
    tells = _find(nvml, "nvmlDeviceGetUtilizationRates")(device, ctypes.byref(utilization)) == 0
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        memory_bytes=memory.total,
        free_bytes=memory.free,
        capability=capability,
        uuid=uuid.value.decode("utf-8", "replace"),
        busy=utilization.gpu / 100 if tells else None,
    )


def _call(nvml: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = _find(nvml, name)(*arguments)
    if code:
        explain = _find(nvml, "nvmlErrorString")
        explain.restype = ctypes.c_char_p
        said = (explain(code) or b"").decode("utf-8", "replace")
        raise DriverError(f"{name}: {said} ({code})")


def _find(nvml: ctypes.CDLL, name: str) -> Any:
    try:
        return getattr(nvml, name)
    except AttributeError:
        raise DriverError(f"expected {name}, which this NVIDIA driver has not: it is too old") from None
