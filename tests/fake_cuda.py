"""CUDA as far as ONNX Runtime's Python shows it: sessions compute on the CPU, and replay graphs as its provider does.

Of a GPU this proves nothing. It proves what this code asks of ONNX Runtime, and what it does with the answers.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from attnserve import sessions

# As ONNX Runtime 1.31 words it. An error of this kind stays with the process: whatever it asks of CUDA fails by it.
LAUNCH_FAILURE = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=gpu ; "
    "file=cuda_stream_handle.cc ; line=210 ; expr=cudaStreamSynchronize(static_cast<cudaStream_t>(GetHandle())); "
)
GRAPH_ID, ARENAS = "gpu_graph_id", "memory.enable_memory_arena_shrinkage"


class Binding:
    """A binding whose tensors on the device are on the CPU."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.binding = session.session.io_binding()
        self.outputs: list[NDArray[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.binding, name)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.outputs.append(value.numpy())
        self.binding.bind_ortvalue_output(name, value)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        cuda = self.session.cuda
        if name == "tokens" and cuda.poison is not None and value.numpy().tolist() == cuda.poison:
            cuda.failure = LAUNCH_FAILURE
        self.binding.bind_ortvalue_input(name, value)

    def copy_outputs_to_cpu(self) -> list[NDArray[Any]]:
        outputs = [np.array(output) for output in self.binding.copy_outputs_to_cpu()]
        self.session.cuda.distort(self.session, outputs)
        return outputs


class Session:
    """A session on a GPU. Under a graph's id it runs what it ran first, whatever it is given."""

    def __init__(self, cuda: "FakeCuda", session: Any, options: dict[str, str]) -> None:
        self.cuda, self.session, self.options = cuda, session, options
        self.first: dict[str, Any] = {}
        self.ids: list[str] = []
        self.released: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run(self, *_: Any) -> None:
        raise AssertionError("what is not bound is copied by ONNX Runtime whenever it likes")

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        if self.cuda.failure is not None:
            raise Fail(self.cuda.failure)
        graph_id = options.get_run_config_entry(GRAPH_ID) if self.options.get("enable_cuda_graph") else "-1"
        self.ids.append(graph_id)
        with contextlib.suppress(RuntimeError):
            if "gpu:" in options.get_run_config_entry(ARENAS):
                # The CPU's provider has no such arena, and says so.
                options = onnxruntime.RunOptions()
        if graph_id in self.first and self.cuda.graphs_are_wrong:
            return
        found = binding if graph_id == "-1" else self.first.setdefault(graph_id, binding)
        self.session.run_with_iobinding(found.binding, options)
        if graph_id == "-1":
            self.cuda.distort(self, binding.outputs)

    def release_captured_graph(self, graph_id: int) -> None:
        self.released.append(graph_id)


class FakeCuda:
    """A machine with GPUs.

    Args:
        num_gpus: how many.
        refuses_graphs: whether models cannot have any, as where a node of theirs runs on the CPU.
        graphs_are_wrong: whether a graph that is run again computes nothing.
        poison: tokens of a batch that ends in an error of CUDA.
    """

    def __init__(
        self,
        *,
        num_gpus: int = 1,
        refuses_graphs: bool = False,
        graphs_are_wrong: bool = False,
        poison: list[int] | None = None,
    ) -> None:
        self.num_gpus = num_gpus
        self.refuses_graphs = refuses_graphs
        self.graphs_are_wrong = graphs_are_wrong
        self.poison = poison
        self.sessions: list[Session] = []
        self.failure: str | None = None
        """What every run says."""
        self.distort: Callable[[Session, list[NDArray[Any]]], None] = lambda *_: None
        """Changes what a session has computed, output by output."""

    def install(self, patch: Any = setattr) -> None:
        """Have ONNX Runtime find these GPUs.

        Args:
            patch: `setattr`, or a monkeypatch's.
        """
        make, from_numpy = onnxruntime.InferenceSession, onnxruntime.OrtValue.ortvalue_from_numpy
        from_shape = onnxruntime.OrtValue.ortvalue_from_shape_and_type

        def make_session(path: Any, options: Any = None, *, providers: list[Any], **rest: Any) -> Any:
            session = make(path, options, providers=["CPUExecutionProvider"], **rest)
            return session if providers == ["CPUExecutionProvider"] else self._open(session, providers[0][1])

        patch(sessions, "_has_nvidia_driver", lambda: True)
        patch(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        patch(onnxruntime, "preload_dlls", lambda: None)
        patch(onnxruntime, "InferenceSession", make_session)
        patch(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(lambda array, *_: from_numpy(array)))
        patch(
            onnxruntime.OrtValue,
            "ortvalue_from_shape_and_type",
            staticmethod(lambda shape, dtype, *_: from_shape(shape, dtype)),
        )

    def _open(self, session: Any, options: dict[str, str]) -> Session:
        if int(options["device_id"]) >= self.num_gpus:
            raise RuntimeError("CUDA failure 101: invalid device ordinal")
        if self.refuses_graphs and options.get("enable_cuda_graph"):
            raise RuntimeError("all compute graph nodes have not been partitioned to the CUDAExecutionProvider")
        opened = Session(self, session, options)
        self.sessions.append(opened)
        return opened
