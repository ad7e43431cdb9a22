"""Sessions of ONNX Runtime: on the device asked for, or not at all."""

import functools
import logging
import os
import queue
import sys
import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnserve.bundle import BundleError
from attnserve.cuda import CUDA_PROVIDER, DEFAULTS, CudaOptions
from attnserve.traffic import CUDA

# Its wheels report to Microsoft unless told not to, and read this when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
NO_DEVICE = "device: expected a usable CUDA device, got none"


class DeviceError(RuntimeError):
    """The device asked for cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model's session, and where it runs."""

    session: Any
    device: str
    num_graphs: int = 0
    """CUDA graphs it may have recorded."""


def open_model(
    path: Path, device: str, num_threads: int, op_library: Path | None, precision: str, cuda: CudaOptions
) -> Opened:
    """Open the model on `device`; "auto" decides by making a CUDA session.

    The provider list alone says nothing: onnxruntime-gpu names CUDA on machines without a GPU.
    """
    if device not in DEVICES:
        raise DeviceError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu":
        _refuse_bfloat16(path, precision)
        return Opened(
            session=open_session(path, "cpu", num_threads, op_library), device="cpu", num_graphs=cuda.num_graphs
        )
    reason = explain_no_cuda()
    if reason is None:
        import onnxruntime

        onnxruntime.preload_dlls()
        try:
            # Without the library: its kernels are for the CPU, and a node that has one runs there and nowhere else.
            opened = _open_on_cuda(path, num_threads, cuda)
        except BundleError as error:
            # What the CPU cannot load either is the bundle's fault. bfloat16 it never can.
            if precision != "bfloat16":
                open_session(path, "cpu", num_threads)
            reason = str(error)
        else:
            if opened.session.get_providers()[0] == CUDA_PROVIDER:
                return opened
            reason = "ONNX Runtime could not create a CUDA session and fell back to the CPU"
        if device == "auto":
            # A driver is there: somebody will wonder.
            log.warning("%s: on the CPU, as CUDA cannot be used: %s", path, reason)
    if device == "cuda":
        raise DeviceError(f"{NO_DEVICE}: {reason}")
    _refuse_bfloat16(path, precision)
    return Opened(session=open_session(path, "cpu", num_threads, op_library), device="cpu")


def _open_on_cuda(path: Path, num_threads: int, cuda: CudaOptions) -> Opened:
    """With CUDA graphs, where they are wanted and every node of the model can be in one."""
    plain = replace(cuda, num_graphs=0)
    with CUDA.load():
        if not cuda.num_graphs:
            return Opened(session=open_session(path, "cuda", num_threads, cuda=plain), device="cuda")
        try:
            session = open_session(path, "cuda", num_threads, cuda=cuda)
            return Opened(session=session, device="cuda", num_graphs=cuda.num_graphs)
        except BundleError as error:
            opened = Opened(session=open_session(path, "cuda", num_threads, cuda=plain), device="cuda")
            log.warning("%s: without CUDA graphs, which it cannot have: %s", path, error)
            return opened


def explain_no_cuda() -> str | None:
    """What this machine lacks for CUDA, as far as can be told without a model; None if nothing."""
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider; install attnserve[gpu]"
    return None if _has_nvidia_driver() else "this machine has no NVIDIA driver"


def _refuse_bfloat16(path: Path, precision: str) -> None:
    """Say it before ONNX Runtime does, which names some inner node that has no implementation."""
    if precision == "bfloat16":
        raise BundleError(
            f"{path}: bfloat16 needs a CUDA device: ONNX Runtime's CPU provider cannot load it; "
            "expected --device cuda, or a bundle exported with --precision float32 or float16"
        )


def _has_nvidia_driver() -> bool:
    """Whether trying CUDA makes sense; without a driver ONNX Runtime writes several lines of errors to stderr."""
    # /dev/dxg: Linux under Windows has no other trace of it.
    places = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")
    # Not `Path.exists`, which raises where it may not look.
    return sys.platform == "win32" or any(map(os.path.exists, places))


def open_session(
    path: Path,
    device: str,
    num_threads: int,
    op_library: Path | None = None,
    cuda: CudaOptions = DEFAULTS,
    *,
    lists_ops: bool = False,
) -> Any:
    """One graph in ONNX Runtime, on "cpu" or "cuda"; `list_ops` may be asked about it if it `lists_ops`.

    Raises:
        BundleError: it cannot be loaded there.
    """
    import onnxruntime

    if device == "cuda":
        _await_room()
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # A service waits for work more than it works: idle threads must not burn a core spinning.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # ONNX Runtime would keep a plan of memory for all shapes that ever came; batches hardly ever have the same again.
    options.enable_mem_pattern = False
    # Products with int8 weights are float32's, as golden is: by default their rows may be rounded to int8 as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if lists_ops:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # 3 = errors. Warnings are about graph optimisations that no operator can act upon.
    options.log_severity_level = 3
    providers = [(CUDA_PROVIDER, cuda.for_provider())] if device == "cuda" else []
    try:
        if op_library is not None:
            options.register_custom_ops_library(os.fspath(op_library))
        # Without enable_fallback=0 a provider that fails is replaced by the CPU, and only stdout hears of it.
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen types of its own, none of them public.
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {error}") from None
    if device == "cuda":
        _free_in_turn(session)
    return session


# Of it `put` may be called anywhere, from within another `put` as well.
_LET_GO: queue.SimpleQueue[Any] = queue.SimpleQueue()
_STARTING = threading.Lock()


def _free_in_turn(session: Any) -> None:
    """Have what a session holds on a device freed while no graph is recorded, which that would spoil.

    Who lets go of a session cannot wait for a recording to end: it may be the garbage collection, in any thread, and in
    the one that records as well.
    """
    weakref.finalize(session, _LET_GO.put, session._sess).atexit = False


def _await_room() -> None:
    """Until all that was let go is freed: who opens a session may count on its memory."""
    with _STARTING:
        _start_freeing()
    freed = threading.Event()
    _LET_GO.put(freed)
    freed.wait()


@functools.cache
def _start_freeing() -> None:
    threading.Thread(target=_free, name="free-sessions", daemon=True).start()


def _free() -> None:
    while True:
        let_go = [_LET_GO.get()]
        if isinstance(let_go[0], threading.Event):
            let_go[0].set()
            continue
        # As a run, which a recording waits for: a load it would give up for.
        with CUDA.run():
            let_go.clear()


def list_ops(session: Any) -> frozenset[str]:
    """Ops that a session runs: a function's own name where a kernel has it, else those of its body.

    Args:
        session: opened with `lists_ops`.
    """
    parts = session.get_provider_graph_assignment_info()
    return frozenset(node.op_type for part in parts for node in part.get_nodes())
