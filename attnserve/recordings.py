"""Recordings: CUDA graphs of a session, one per bucket of sizes and outputs, recorded when they come a second time.

What ONNX Runtime asks of whoever has it record graphs (its page of the CUDA provider, "Using CUDA Graphs"):

* A graph reads and writes where it read and wrote when it was recorded. So a bucket has tensors of its own on the
  device, which stay; new inputs are copied into them.
* A graph is known by the run option `gpu_graph_id`. Its sizes are never looked at again: what runs under an id that is
  taken is that graph. So every recording has an id of its own, for ever, and -1 is a run that is none.
* Nobody else may use the session meanwhile, so its runs take turns; nor may anybody use CUDA while a graph is recorded,
  so that waits for silence (`attnserve/traffic.py`).
* A graph is known to the thread that recorded it, and to no other: the CUDA provider keeps graphs by thread. Another
  thread that runs under its id records it anew, whoever uses CUDA meanwhile. So every thread has recordings of its own.
* What a run took from the session's arena goes back there, and a graph writes to it all the same when it runs again. So
  no output of another run may stay in the arena, and the arena may give nothing back to the device.

None of this has run on a GPU: docs/gpu.md.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.buckets import Bucket
from attnserve.bundle import Tensor
from attnserve.traffic import CUDA

log = logging.getLogger(__name__)

GRAPH_ID = "gpu_graph_id"
NO_GRAPH = "-1"
# A graph saves what launching kernels costs, and padding costs what it computes: beyond some size it is a loss. Where,
# nobody has measured.
MAX_ROWS = 1024
MAX_CELLS = 2**18
# ONNX Runtime 1.31 has a call that releases a graph, which its CUDA provider may ignore until the session ends. So
# recordings that make room for others are bounded too, by this many per place.
RECORDED_PER_PLACE = 8


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a graph is of."""

    bucket: Bucket
    outputs: tuple[Tensor, ...]
    """[num_answers, ...] each, with sizes that are fixed."""
    num_answers: int


class _Thread(threading.local):
    def __init__(self) -> None:
        self.owner = object()
        """Of the thread that asks. Not its number, which is another one's when it has ended."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Recording:
    owner: object
    wanted: Wanted
    graph_id: int
    inputs: Mapping[str, Any]
    """Tensors on the device, by name."""
    binding: Any
    options: Any


class Recordings:
    """The graphs of one session; to be used in its `turn`, as whatever else is run by the session.

    Args:
        session: made with `enable_cuda_graph`.
        device: "cuda"; "cpu" computes the same without a graph, for tests.
        gpu: its number.
        max_recordings: kept at a time, of all threads. The one that has not been used for longest makes room.
    """

    def __init__(self, session: Any, *, device: str, gpu: int, max_recordings: int) -> None:
        self._session = session
        self._device = (device, gpu)
        self._max_recordings = max_recordings
        self._thread = _Thread()
        self._recordings: OrderedDict[tuple[object, Wanted], _Recording] = OrderedDict()
        self._seen: set[Wanted] = set()
        self._num_recorded = self._num_forgotten = 0
        self.turn = threading.Lock()
        self.is_on = True
        """Whether graphs are recorded and replayed."""

    def __len__(self) -> int:
        return len(self._recordings)

    def wants(self, wanted: Wanted) -> bool:
        """Whether a batch of these sizes should be padded, and run here; not the first time that it is asked."""
        if not self.is_on or wanted.bucket.num_rows > MAX_ROWS or wanted.bucket.num_cells > MAX_CELLS:
            return False
        if (self._thread.owner, wanted) in self._recordings:
            return True
        if wanted not in self._seen:
            self._seen.add(wanted)
            return False
        return self._num_recorded - self._num_forgotten < RECORDED_PER_PLACE * self._max_recordings

    def run(self, wanted: Wanted, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
        """The outputs of a batch that has been padded, by name; None if it is to be run plainly."""
        try:
            recording = self._recordings.get((self._thread.owner, wanted))
            if recording is not None:
                with CUDA.run():
                    return self._replay(recording, feeds)
            with CUDA.silence() as is_silent:
                # A model is being loaded, for seconds: later, then.
                return self._record(wanted, feeds) if is_silent else None
        except Exception:  # ONNX Runtime raises a dozen types of its own, none of them public.
            # What is left of the session nobody knows; a plain run will say, and golden after it.
            log.exception("a CUDA graph failed, and there will be none: runs are plain from now on")
            self.stop()
            return None

    def stop(self) -> None:
        """Record no more, and forget all. They are the session's until it ends: it may not be fit to be asked."""
        self.is_on = False
        self._recordings.clear()

    def forget(self) -> None:
        """Release all, and begin anew: what proofs and measurements have had recorded, nobody will ask for."""
        while self._recordings:
            self._evict()
        self._seen.clear()
        self._num_forgotten = self._num_recorded

    def _replay(self, recording: _Recording, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, tensor in recording.inputs.items():
            if feeds[name].size:
                tensor.update_inplace(np.ascontiguousarray(feeds[name]))
        self._session.run_with_iobinding(recording.binding, recording.options)
        self._recordings.move_to_end((recording.owner, recording.wanted))
        return _read(recording)

    def _record(self, wanted: Wanted, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import onnxruntime

        while len(self._recordings) >= self._max_recordings:
            self._evict()
        self._num_recorded += 1
        options = onnxruntime.RunOptions()
        # 0 is ONNX Runtime's own.
        options.add_run_config_entry(GRAPH_ID, str(self._num_recorded))
        binding = self._session.io_binding()
        make = onnxruntime.OrtValue
        inputs = {}
        for name, array in feeds.items():
            # A copy: on the CPU the tensor would be the caller's array, and be written to.
            inputs[name] = make.ortvalue_from_numpy(np.array(array), *self._device)
            binding.bind_ortvalue_input(name, inputs[name])
        for output in wanted.outputs:
            shape = (wanted.num_answers, *map(int, output.shape[1:]))
            binding.bind_ortvalue_output(
                output.name, make.ortvalue_from_shape_and_type(shape, np.dtype(output.dtype), *self._device)
            )
        # Warms up, records, and runs what was recorded, all in the first run.
        self._session.run_with_iobinding(binding, options)
        recording = _Recording(
            owner=self._thread.owner,
            wanted=wanted,
            graph_id=self._num_recorded,
            inputs=inputs,
            binding=binding,
            options=options,
        )
        self._recordings[recording.owner, wanted] = recording
        return _read(recording)

    def _evict(self) -> None:
        _, recording = self._recordings.popitem(last=False)
        self._session.release_captured_graph(recording.graph_id)


def _read(recording: _Recording) -> dict[str, NDArray[Any]]:
    found = recording.binding.copy_outputs_to_cpu()
    # On the CPU these are the tensors themselves, which the next run overwrites.
    return {output.name: np.array(array) for output, array in zip(recording.wanted.outputs, found, strict=True)}
