"""Trying a device out: a session is made there and multiplies. ONNX Runtime's lists only say what it was built for."""

import contextlib
import ctypes
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attnserve.sessions import explain_no_cuda

# ONNX, opset 13: y = x @ x, float32 [2, 2]. Here and not in a file, for a broken installation may have lost files.
PROBE = (
    b'\x08\x08:D\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x05probe'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02B\x04\n\x00\x10\r"
)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def try_device(device: str) -> str | None:
    """Why models cannot run on `device`, "cpu" or "cuda"; None if a product came out right there."""
    if device == "cuda":
        if (reason := explain_no_cuda()) is not None:
            return reason
        import onnxruntime

        # It prints what it does not find; `find_missing_libraries` says the same.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    with _hear_stderr() as said:
        reason = _multiply(PROVIDERS[device])
    heard = " ".join(said)
    return reason if reason is None or not heard else f"{reason}; it said: {heard}"


def _multiply(provider: str) -> str | None:
    """Why `provider` does not multiply; None if it does."""
    import onnxruntime

    try:
        # Without enable_fallback=0 ONNX Runtime's Python prints what went wrong and goes on with the CPU.
        session = onnxruntime.InferenceSession(PROBE, providers=[provider], enable_fallback=0)
        if session.get_providers()[0] != provider:
            return "ONNX Runtime fell back to the CPU"
        x = np.array([[1, 2], [3, 4]], np.float32)
        (found,) = session.run(None, {"x": x})
    except Exception as error:  # ONNX Runtime raises a dozen types of its own, none of them public.
        return f"ONNX Runtime: {error}"
    return None if np.array_equal(found, x @ x) else f"wrong product: expected {(x @ x).tolist()}, got {found.tolist()}"


@contextlib.contextmanager
def _hear_stderr() -> Iterator[list[str]]:
    """Lines written to stderr meanwhile, by C++ too: there ONNX Runtime says why it does not use a provider."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    # In memory where the system has that: containers may have no folder that can be written to.
    with os.fdopen(os.memfd_create("said"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += [line for line in file.read().decode("utf-8", "replace").split("\n") if line.strip()]


def find_missing_libraries(cuda: str) -> tuple[str, ...]:
    """Of CUDA's and cuDNN's libraries that ONNX Runtime's provider needs, those that cannot be loaded.

    Args:
        cuda: release of CUDA that ONNX Runtime was built for, such as "13.0".
    """
    major = int(cuda.partition(".")[0])
    fft = 12 if major >= 13 else 11
    # In this order: each finds those before it.
    names = (
        *(f"lib{name}.so.{major}" for name in ("cudart", "cublasLt", "cublas", "nvrtc")),
        "libcurand.so.10",
        f"libcufft.so.{fft}",
        "libcudnn.so.9",
    )
    return tuple(name for name in names if not _can_load(name))


def _can_load(name: str) -> bool:
    # Where pip puts them: nvidia/cu13/lib, or nvidia/cublas/lib and so on.
    wheels = (path for entry in sys.path for path in Path(entry or ".").glob(f"nvidia/*/lib/{name}"))
    for path in (*map(str, wheels), name):
        with contextlib.suppress(OSError):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            return True
    return False
