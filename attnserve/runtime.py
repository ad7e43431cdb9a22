"""`Runtime`: a bundle opened in ONNX Runtime. Golden replay, `attnserve check` and the service's engine use it."""

import contextlib
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bound import BoundSession, run_bound
from attnserve.buckets import find_bucket, pad
from attnserve.bundle import (
    CAPTURE,
    FEATURES,
    HEAD_SCALE,
    LOGITS,
    MODEL_FILE,
    POSITIONS,
    ROWS,
    SLOTS,
    TOKENS,
    TOP,
    BundleError,
    Manifest,
    read_manifest,
    verify_files,
)
from attnserve.cuda import DEFAULTS, CudaOptions
from attnserve.describing import STATISTICS_OP, Describing, statistics_file
from attnserve.interface import Interface
from attnserve.interrupt import Interrupt
from attnserve.packing import Empty, Packed
from attnserve.pinned import find_empty
from attnserve.recordings import GRAPH_ID, NO_GRAPH, Recordings, Wanted
from attnserve.residence import Residence
from attnserve.resident import Resident
from attnserve.sessions import list_ops, open_model, open_session
from attnserve.traffic import CUDA
from attnserve.weighing import open_weighing

NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)
NO_RESIDENTS: Mapping[str, Resident] = {}


class Runtime:
    """The sessions of one bundle on one device.

    Args:
        folder: the bundle.
        device: "cpu", "cuda" or "auto" (CUDA where a CUDA session can really be made).
        num_threads: of each session; 0 is ONNX Runtime's choice, one per physical core.
        op_library: native library of kernels registered with the model's session; without one, on other devices than
            the CPU and in portable bundles the bodies run.
        binds: whether inputs and outputs are bound to the device before a run; None is where it is not the CPU.
        cuda: how, where the device is CUDA.

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
        cuda: CudaOptions = DEFAULTS,
    ) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        verify_files(self.folder, self.manifest)
        precision = self.manifest.certificate.precision
        # The bodies are inlined in a portable file: no kernel could take their place.
        library = None if op_library is None or self.manifest.portable else Path(op_library)
        opened = open_model(self.folder / MODEL_FILE, device, num_threads, library, precision, cuda)
        self.session, self.device = opened.session, opened.device
        self.op_library = library if self.device == "cpu" else None
        self.binds = self.device != "cpu" if binds is None else binds
        self.recordings = (
            Recordings(self.session, device=self.device, gpu=cuda.gpu, max_recordings=opened.num_graphs)
            if self.binds and opened.num_graphs
            else None
        )
        """CUDA graphs, where runs may be recorded."""
        self._wants_graphs = self.binds and cuda.num_graphs > 0
        self.gpu = cuda.gpu if self.device == "cuda" else 0
        """Its number."""
        self.empty: Empty = find_empty(self.gpu) if self.device == "cuda" else np.empty
        """Makes arrays that the device reads and writes."""
        self._plain, self._shrinking = (
            _run_options(self.device, self.gpu, shrinks=shrinks, records=self.recordings is not None)
            for shrinks in (False, True)
        )
        if {entry.name for entry in self.session.get_outputs()} != {entry.name for entry in self.manifest.outputs}:
            raise BundleError(f"{self.folder / MODEL_FILE}: its outputs are not those the manifest names")
        self.weighing = open_weighing(
            self.folder,
            self.manifest,
            lambda path: open_session(path, "cpu", num_threads),
            None if self.op_library is None else _open_describing(self.manifest, num_threads, self.op_library),
        )
        """Recomputes weights from captures."""
        self._open_there = functools.partial(open_session, num_threads=num_threads, cuda=replace(cuda, num_graphs=0))
        self.residence: Residence | None = None
        """Where captures may stay on the device, and its weights graphs; None where they come to the host."""

    @property
    def graphs(self) -> str:
        """`on`: frequent batches are CUDA graphs; `off`: they are not to be; `failed`: they cannot be."""
        if not self._wants_graphs:
            return "off"
        return "on" if self.recordings is not None and self.recordings.is_on else "failed"

    def settle(self) -> None:
        """Let captures stay on the device from now on, and open what reads them there.

        Raises:
            BundleError: the device cannot have it.
        """
        assert self.binds, "what stays is bound"

        def open_graph(path: Path) -> BoundSession:
            return BoundSession(self._open_there(path, self.device), device=self.device, gpu=self.gpu)

        with CUDA.load():
            self.residence = Residence(
                self.folder, self.manifest, device=self.device, gpu=self.gpu, open_graph=open_graph
            )

    def hold(self, names: Collection[str], num_rows: int) -> dict[str, Resident]:
        """Room on the device for captures [num_rows, ...] of a run, by name; none where they come to the host."""
        if self.residence is None:
            return {}
        return self.residence.hold([one for one in self.manifest.outputs if one.name in names], num_rows)

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
        held: Mapping[str, Resident] = NO_RESIDENTS,
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
            held: further outputs, by name, which are written where `hold` made room for them.
            shrink: whether memory that earlier runs needed, and this one does not, is given back to the system.
            interrupt: ends the run early; not together with `shrink`.

        Raises:
            Interrupted: by `interrupt`.
        """
        names = list(outputs)
        # Outputs are copied before another run may begin: in the arena, graphs would write over them.
        with contextlib.nullcontext() if self.recordings is None else self.recordings.turn:
            is_plain = {LOGITS, *TOP}.issuperset(names) and not len(capture) and head_scale is None
            if is_plain and interrupt is None and not shrink:
                found = self._run_recorded(names, packed, rows)
                if found is not None:
                    return found
            feeds = self.feeds(packed, rows, capture, head_scale)
            options = self._shrinking if shrink else self._plain if interrupt is None else interrupt.options
            try:
                if not self.binds:
                    values = self.session.run(names, feeds, options)
                    return dict(zip(names, values, strict=True))
                found = self._make_outputs(names, packed, len(rows), len(capture))
                with CUDA.run():
                    self._run_bound(found, held, feeds, options)
                return found
            except Exception:
                # ONNX Runtime has no type of its own for it.
                if interrupt is not None:
                    interrupt.check()
                raise

    def _run_recorded(
        self, names: list[str], packed: Packed, rows: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]] | None:
        """Outputs by a CUDA graph, of the batch padded to its bucket; None where there is none."""
        if self.recordings is None:
            return None
        bucket = find_bucket(packed, len(rows), self.manifest.max_steps)
        asked, answered = len(rows), bucket.num_wanted
        if not self.manifest.has_rows:
            asked, answered = len(packed.lengths), bucket.num_sequences
        outputs = tuple(tensor for tensor in self.manifest.outputs if tensor.name in names)
        wanted = Wanted(bucket=bucket, outputs=outputs, num_answers=answered)
        if not self.recordings.wants(wanted):
            return None
        padded = pad(packed, rows, bucket)
        found = self.recordings.run(wanted, self.feeds(padded.packed, padded.rows))
        return None if found is None else {name: array[:asked] for name, array in found.items()}

    def _make_outputs(
        self, names: Sequence[str], packed: Packed, num_wanted: int, num_captured: int
    ) -> dict[str, NDArray[Any]]:
        """Arrays that a run will write."""
        sizes = {"R": num_wanted, "B": len(packed.lengths), "C": num_captured}
        by_name = {tensor.name: tensor for tensor in self.manifest.outputs}
        return {
            name: self.empty(
                [sizes[size] if size in sizes else int(size) for size in by_name[name].shape], by_name[name].dtype
            )
            for name in names
        }

    def _run_bound(
        self,
        outputs: Mapping[str, NDArray[Any]],
        held: Mapping[str, Resident],
        feeds: Mapping[str, NDArray[Any]],
        options: Any,
    ) -> None:
        """Run with inputs and outputs bound: outputs stay on the device until all are there."""
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_numpy
        binding = self.session.io_binding()
        for name, array in feeds.items():
            # As a tensor: `bind_cpu_input` knows no initialisers, and `head_scale` is one.
            binding.bind_ortvalue_input(name, make(np.ascontiguousarray(array)))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, make(array))
        for name, resident in held.items():
            binding.bind_ortvalue_output(name, resident.held.value)
        run_bound(self.session, binding, options)


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


def _open_describing(manifest: Manifest, num_threads: int, op_library: Path) -> Describing | None:
    """What a library adds up over rows of weights; None where it has no such op, whose body is slower than numpy."""
    files = {weighting: statistics_file(weighting) for weighting in manifest.weightings}
    if not all(path.is_file() for path in files.values()):
        return None
    sessions = {
        name: open_session(path, "cpu", num_threads, op_library, lists_ops=True) for name, path in files.items()
    }
    has_kernels = all(STATISTICS_OP in list_ops(session) for session in sessions.values())
    return Describing(sessions, has_kernels=True) if has_kernels else None


def _run_options(device: str, gpu: int, *, shrinks: bool, records: bool) -> Any:
    """Options of a run that records no graph, and of one that gives back memory, which ONNX Runtime keeps else."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if records:
        options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
    if shrinks:
        # With graphs the device's arena keeps what they write to.
        arenas = "cpu:0" if device == "cpu" or records else f"cpu:0;gpu:{gpu}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)
    return options
