"""CUDA as far as ONNX Runtime's Python shows it: sessions compute on the CPU, and replay graphs as its provider does.

Of a GPU this proves nothing. It proves what this code asks of ONNX Runtime, and what it does with the answers.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from attnserve import sessions
from attnserve.bundle import MODEL_FILE
from attnserve.traffic import CUDA

# As ONNX Runtime 1.31 words it. An error of this kind stays with the process: whatever it asks of CUDA fails by it.
LAUNCH_FAILURE = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=gpu ; "
    "file=cuda_stream_handle.cc ; line=210 ; expr=cudaStreamSynchronize(static_cast<cudaStream_t>(GetHandle())); "
)
# Of calls, and of what is recorded, while others use CUDA.
SPOILED = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 900: operation not permitted when stream is capturing"
GRAPH_ID, ARENAS = "gpu_graph_id", "memory.enable_memory_arena_shrinkage"


class Binding:
    """A binding whose tensors on the device are on the CPU, and marked."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.binding = session.session.io_binding()
        self.arrays: list[NDArray[Any]] = []
        """Outputs that are bound to memory of the host."""
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.binding, name)

    def bind_output(self, name: str, device: str, number: int) -> None:
        assert (device, number) == self.session.place
        self.names.append(name)
        self.binding.bind_output(name, "cpu")

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        if place_of(value) is None:
            self.arrays.append(value.numpy())
        else:
            assert place_of(value) == self.session.place
        self.names.append(name)
        self.binding.bind_ortvalue_output(name, value)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        if place_of(value) is not None:
            assert place_of(value) == self.session.place
        elif self.session.is_poison(name, value.numpy()):
            self.session.cuda.failure = LAUNCH_FAILURE
        self.binding.bind_ortvalue_input(name, value)

    def get_outputs(self) -> list[Any]:
        return [mark(value, self.session.place) for value in self.binding.get_outputs()]

    def copy_outputs_to_cpu(self) -> list[NDArray[Any]]:
        outputs = [np.array(output) for output in self.binding.copy_outputs_to_cpu()]
        self.session.hand_out(outputs)
        return outputs


def mark(value: Any, place: tuple[str, int]) -> Any:
    """Say of a tensor of ONNX Runtime that it is on a device."""
    value.place = place
    return value


def place_of(value: Any) -> tuple[str, int] | None:
    """Device of a tensor of ONNX Runtime; None if it is on the host."""
    return getattr(value, "place", None)


class Graphs(threading.local):
    """What a thread has recorded, by id: its CUDA provider keeps graphs by thread."""

    def __init__(self) -> None:
        self.by_id: dict[str, Any] = {}

    def find(self, graph_id: str, binding: Any) -> Any:
        """What runs under an id: what was recorded, or this, which is recorded now."""
        if graph_id not in self.by_id and not CUDA._is_silent:
            raise Fail(SPOILED)
        return self.by_id.setdefault(graph_id, binding)


class Session:
    """A session on a GPU. Under a graph's id a thread runs what it ran first, whatever it is given."""

    def __init__(self, cuda: "FakeCuda", session: Any, options: dict[str, str], *, is_model: bool) -> None:
        self.cuda, self.session, self.options = cuda, session, options
        self.is_model = is_model
        self.place = ("cuda", int(options["device_id"]))
        self.graphs = Graphs()
        self.ids: list[str] = []
        self.bound: list[list[str]] = []
        """Outputs of each run; others are not copied from the device."""
        self.released: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run(self, *_: Any) -> None:
        raise AssertionError("what is not bound is copied by ONNX Runtime whenever it likes")

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        if self.cuda.failure is not None:
            raise Fail(self.cuda.failure)
        options = onnxruntime.RunOptions() if options is None else options
        graph_id = options.get_run_config_entry(GRAPH_ID) if self.options.get("enable_cuda_graph") else "-1"
        self.ids.append(graph_id)
        self.bound.append(binding.names)
        with contextlib.suppress(RuntimeError):
            if "gpu:" in options.get_run_config_entry(ARENAS):
                # The CPU's provider has no such arena, and says so.
                options = onnxruntime.RunOptions()
        if graph_id in self.graphs.by_id and self.cuda.graphs_are_wrong:
            return
        found = binding if graph_id == "-1" else self.graphs.find(graph_id, binding)
        self.session.run_with_iobinding(found.binding, options)
        if graph_id == "-1" and binding.arrays:
            self.hand_out(binding.arrays)

    def is_poison(self, name: str, given: NDArray[Any]) -> bool:
        """Whether an input from the host is one that ends in an error."""
        if self.is_model:
            return name == "tokens" and given.tolist() == self.cuda.poison
        return given.shape == (self.cuda.poison_rows,)

    def hand_out(self, outputs: list[NDArray[Any]]) -> None:
        """Outputs come to the host."""
        self.cuda.copied_bytes += sum(output.nbytes for output in outputs)
        (self.cuda.distort if self.is_model else self.cuda.distort_others)(self, outputs)

    def release_captured_graph(self, graph_id: int) -> None:
        self.released.append(graph_id)

    def __del__(self, abort: Callable[[], None] = os.abort) -> None:
        # What frees page-locked memory throws where CUDA fails. From a destructor, that ends the process.
        if self.cuda.aborts and self.cuda.failure is not None:
            abort()


class FakeCuda:
    """A machine with GPUs.

    Args:
        num_gpus: how many.
        refuses_graphs: whether models cannot have any, as where a node of theirs runs on the CPU.
        graphs_are_wrong: whether a graph that is run again computes nothing.
        poison: tokens of a batch that ends in an error of CUDA.
        poison_rows: number of rows that end in one when other graphs than models are given them.
        aborts: whether a session that is let go after such an error ends the process, as ONNX Runtime's destructors do.
    """

    def __init__(
        self,
        *,
        num_gpus: int = 1,
        refuses_graphs: bool = False,
        graphs_are_wrong: bool = False,
        poison: list[int] | None = None,
        poison_rows: int | None = None,
        aborts: bool = False,
    ) -> None:
        self.num_gpus = num_gpus
        self.refuses_graphs = refuses_graphs
        self.graphs_are_wrong = graphs_are_wrong
        self.poison, self.poison_rows = poison, poison_rows
        self.aborts = aborts
        self.sessions: list[Session] = []
        """Of models."""
        self.copied_bytes = 0
        """From devices to the host."""
        self.failure: str | None = None
        """What every run says."""
        self.distort: Callable[[Session, list[NDArray[Any]]], None] = lambda *_: None
        """Changes what a model's session has computed, output by output."""
        self.distort_others = self.distort
        """And what other sessions have."""

    def install(self, patch: Any = setattr) -> None:
        """Have ONNX Runtime find these GPUs.

        Args:
            patch: `setattr`, or a monkeypatch's.
        """
        make, numpy = onnxruntime.InferenceSession, onnxruntime.OrtValue.numpy
        from_numpy = onnxruntime.OrtValue.ortvalue_from_numpy
        from_shape = onnxruntime.OrtValue.ortvalue_from_shape_and_type

        def make_session(path: Any, options: Any = None, *, providers: list[Any], **rest: Any) -> Any:
            session = make(path, options, providers=["CPUExecutionProvider"], **rest)
            if providers == ["CPUExecutionProvider"]:
                return session
            return self._open(session, providers[0][1], is_model=Path(path).name == MODEL_FILE)

        def make_from_numpy(array: NDArray[Any], *place: Any) -> Any:
            return from_numpy(array) if place[:1] != ("cuda",) else mark(from_numpy(array), (place[0], place[1]))

        def make_from_shape(shape: Any, dtype: Any, *place: Any) -> Any:
            value = from_shape(shape, dtype)
            return value if place[:1] != ("cuda",) else mark(value, (place[0], place[1]))

        def to_numpy(value: Any) -> NDArray[Any]:
            if place_of(value) is None:
                return numpy(value)
            if self.failure is not None:
                raise Fail(self.failure)
            self.copied_bytes += value.tensor_size_in_bytes()
            return np.array(numpy(value))

        patch(sessions, "_has_nvidia_driver", lambda: True)
        patch(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        patch(onnxruntime, "preload_dlls", lambda: None)
        patch(onnxruntime, "InferenceSession", make_session)
        patch(onnxruntime.OrtValue, "numpy", to_numpy)
        patch(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(make_from_numpy))
        patch(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(make_from_shape))

    def _open(self, session: Any, options: dict[str, str], *, is_model: bool) -> Session:
        if int(options["device_id"]) >= self.num_gpus:
            raise RuntimeError("CUDA failure 101: invalid device ordinal")
        if self.refuses_graphs and options.get("enable_cuda_graph"):
            raise RuntimeError("all compute graph nodes have not been partitioned to the CUDAExecutionProvider")
        opened = Session(self, session, options, is_model=is_model)
        if is_model:
            self.sessions.append(opened)
        return opened
