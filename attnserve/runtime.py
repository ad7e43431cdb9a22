"""`Runtime`: a bundle opened in ONNX Runtime. Golden replay, `attnserve check` and the service's engine use it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import (
    CAPTURE,
    FEATURES,
    HEAD_SCALE,
    MODEL_FILE,
    POSITIONS,
    ROWS,
    SLOTS,
    TOKENS,
    BundleError,
    Manifest,
    normaliser_file,
    read_manifest,
    rows_file,
    verify_files,
    weights_file,
)
from attnserve.describing import Describing, statistics_file
from attnserve.interface import Interface
from attnserve.packing import Packed
from attnserve.weighing import Weighing

# Its wheels report to Microsoft unless told not to, and read this when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

CUDA_PROVIDER = "CUDAExecutionProvider"
# Products are of float32, as certificates are: unless told not to, ONNX Runtime rounds their factors to TF32, ten bits.
CUDA_OPTIONS = {"use_tf32": "0"}
DEVICES = ("auto", "cpu", "cuda")
NO_DEVICE = "device: expected a usable CUDA device, got none"
NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


class DeviceError(RuntimeError):
    """The device asked for cannot be used; the message says why."""


class Interrupted(Exception):
    """A run was ended before its end."""


class Interrupt:
    """Ends a run that is under way in another thread: it goes on to the end of a node of the graph, and no further."""

    def __init__(self) -> None:
        import onnxruntime

        self.options = onnxruntime.RunOptions()
        """Of the run."""
        # Its end is no error.
        self.options.log_severity_level = 4
        self.is_set = False

    def set(self) -> None:
        """End it, if it runs."""
        self.is_set = True
        self.options.terminate = True

    def check(self) -> None:
        """Raise what an interrupted run raises, in between.

        Raises:
            Interrupted: it has been set.
        """
        if self.is_set:
            raise Interrupted


class Runtime:
    """The sessions of one bundle on one device.

    Args:
        folder: the bundle.
        device: "cpu", "cuda" or "auto" (CUDA where a CUDA session can really be made).
        num_threads: of each session; 0 is ONNX Runtime's choice, one per physical core.
        op_library: native library of kernels registered with the model's session; without one, on other devices than
            the CPU and in portable bundles the bodies run.
        binds: whether inputs and outputs are bound to the device before a run; None is where it is not the CPU.

    Raises:
        BundleError: the bundle is damaged, or ONNX Runtime cannot load it or `op_library`.
        DeviceError: `device` is "cuda" and no CUDA session can be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "cpu",
        num_threads: int = 0,
        op_library: str | os.PathLike[str] | None = None,
        binds: bool | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        verify_files(self.folder, self.manifest)
        precision = self.manifest.certificate.precision
        # The bodies are inlined in a portable file: no kernel could take their place.
        library = None if op_library is None or self.manifest.portable else Path(op_library)
        self.session, self.device = _open_model(self.folder / MODEL_FILE, device, num_threads, library, precision)
        self.op_library = library if self.device == "cpu" else None
        self._shrinking = _shrinking_options(self.device)
        self.binds = self.device != "cpu" if binds is None else binds
        if {entry.name for entry in self.session.get_outputs()} != {entry.name for entry in self.manifest.outputs}:
            raise BundleError(f"{self.folder / MODEL_FILE}: its outputs are not those the manifest names")
        paths = (file(one) for one in self.manifest.weightings for file in (weights_file, normaliser_file, rows_file))
        self.weighing = Weighing(
            {path: _open(self.folder / path, "cpu", num_threads) for path in paths if path in self.manifest.files},
            None if self.op_library is None else _open_describing(self.manifest, num_threads, self.op_library),
        )
        """Recomputes weights from captures."""

    def feeds(
        self,
        packed: Packed,
        rows: NDArray[np.int64],
        capture: NDArray[np.int64] = NO_ROWS,
        head_scale: NDArray[np.float32] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The graph's inputs for one batch; see `run`."""
        return feeds_of(self.manifest, packed, rows, capture, head_scale)

    def run(
        self,
        packed: Packed,
        rows: NDArray[np.int64],
        outputs: Sequence[str],
        capture: NDArray[np.int64] = NO_ROWS,
        head_scale: NDArray[np.float32] | None = None,
        *,
        shrink: bool = False,
        interrupt: Interrupt | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run the graph on one batch.

        Args:
            packed: the batch.
            rows: [R] packed rows whose logits are wanted; with mean pooling every sequence is answered for instead.
            outputs: names of the outputs to return.
            capture: [C] packed rows the captures among `outputs` are gathered from.
            head_scale: [layers, heads] factor on every head's output; None is all ones.
            shrink: whether memory that earlier runs needed, and this one does not, is given back to the system.
            interrupt: ends the run early; not together with `shrink`.

        Raises:
            Interrupted: by `interrupt`.
        """
        feeds = self.feeds(packed, rows, capture, head_scale)
        names = list(outputs)
        options = self._shrinking if shrink else None if interrupt is None else interrupt.options
        try:
            values = self._run_bound(names, feeds, options) if self.binds else self.session.run(names, feeds, options)
        except Exception:
            # ONNX Runtime has no type of its own for it.
            if interrupt is not None:
                interrupt.check()
            raise
        return dict(zip(names, values, strict=True))

    def _run_bound(self, names: list[str], feeds: dict[str, NDArray[Any]], options: Any) -> list[NDArray[Any]]:
        """Run with inputs and outputs bound: outputs stay on the device until all are there."""
        import onnxruntime

        binding = self.session.io_binding()
        for name, array in feeds.items():
            # As a tensor: `bind_cpu_input` knows no initialisers, and `head_scale` is one.
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        for name in names:
            binding.bind_output(name, self.device)
        self.session.run_with_iobinding(binding, options)
        return list(binding.copy_outputs_to_cpu())


def feeds_of(
    interface: Interface,
    packed: Packed,
    rows: NDArray[np.int64],
    capture: NDArray[np.int64] = NO_ROWS,
    head_scale: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[Any]]:
    """The inputs of a bundle's graph for one batch; `Runtime.run` explains them."""
    feeds = {
        TOKENS if interface.num_features is None else FEATURES: packed.inputs,
        POSITIONS: packed.positions,
        SLOTS: packed.slots,
        CAPTURE: capture,
    }
    if interface.has_rows:
        feeds[ROWS] = rows
    return feeds if head_scale is None else {**feeds, HEAD_SCALE: head_scale}


def _open_model(path: Path, device: str, num_threads: int, op_library: Path | None, precision: str) -> tuple[Any, str]:
    """Open the model on `device`; "auto" decides by making a CUDA session.

    The provider list alone says nothing: onnxruntime-gpu names CUDA on machines without a GPU.
    """
    if device not in DEVICES:
        raise DeviceError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu":
        _refuse_bfloat16(path, precision)
        return _open(path, "cpu", num_threads, op_library), "cpu"
    reason = explain_no_cuda()
    if reason is None:
        import onnxruntime

        onnxruntime.preload_dlls()
        try:
            # Without the library: its kernels are for the CPU, and a node that has one runs there and nowhere else.
            session = _open(path, "cuda", num_threads)
        except BundleError as error:
            # What the CPU cannot load either is the bundle's fault. bfloat16 it never can.
            if precision != "bfloat16":
                _open(path, "cpu", num_threads)
            reason = str(error)
        else:
            if session.get_providers()[0] == CUDA_PROVIDER:
                return session, "cuda"
            reason = "ONNX Runtime could not create a CUDA session and fell back to the CPU"
    if device == "cuda":
        raise DeviceError(f"{NO_DEVICE}: {reason}")
    _refuse_bfloat16(path, precision)
    return _open(path, "cpu", num_threads, op_library), "cpu"


def _open_describing(manifest: Manifest, num_threads: int, op_library: Path) -> Describing | None:
    """What a library adds up over rows of weights; None where it has no such op."""
    files = {weighting: statistics_file(weighting) for weighting in manifest.weightings}
    try:
        return Describing({name: _open(path, "cpu", num_threads, op_library) for name, path in files.items()})
    except BundleError:  # A library of other ops is none the worse for it.
        return None


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
    return sys.platform == "win32" or any(map(os.path.exists, ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")))


def _shrinking_options(device: str) -> Any:
    """Options of a run that gives back memory. ONNX Runtime keeps what the largest batch ever took, else."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0" if device == "cpu" else "cpu:0;gpu:0")
    return options


def _open(path: Path, device: str, num_threads: int, op_library: Path | None = None) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # A service waits for work more than it works: idle threads must not burn a core spinning.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Products with int8 weights are float32's, as golden is: by default their rows may be rounded to int8 as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # 3 = errors. Warnings are about graph optimisations that no operator can act upon.
    options.log_severity_level = 3
    providers = [(CUDA_PROVIDER, CUDA_OPTIONS)] if device == "cuda" else []
    try:
        if op_library is not None:
            options.register_custom_ops_library(os.fspath(op_library))
        # Without enable_fallback=0 a provider that fails is replaced by the CPU, and only stdout hears of it.
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen types of its own, none of them public.
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {error}") from None
