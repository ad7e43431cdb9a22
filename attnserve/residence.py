"""`Residence`: room on a device for captures that stay there, and the graphs that read them."""

import logging
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from attnserve.bound import BoundSession, DeviceFailure, using_device
from attnserve.bundle import Manifest, Tensor
from attnserve.describing import Describing, statistics_file
from attnserve.resident import GRAPHS, Held, Resident, capture_file
from attnserve.weighing import open_weighing

log = logging.getLogger(__name__)


class Residence:
    """Captures of one bundle on one device.

    Args:
        folder: the bundle.
        manifest: of it.
        device: "cuda"; "cpu" does the same, for tests.
        gpu: its number.
        open_graph: opens a graph there.

    Raises:
        BundleError: by `open_graph`.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, device: str, gpu: int, open_graph: Callable[[Path], BoundSession]
    ) -> None:
        files = {weighting: statistics_file(weighting) for weighting in manifest.weightings}
        describing = Describing({name: open_graph(path) for name, path in files.items()}, has_kernels=False)
        self.weighing = open_weighing(folder, manifest, open_graph, describing)
        """Weighs them there."""
        captured = {name for layer in manifest.layers for name in layer.captures.values()}
        dtypes = {tensor.dtype for tensor in manifest.outputs if tensor.name in captured}
        self.max_bytes = math.inf
        """Of what stays at a time."""
        self._place = (device, gpu)
        self._graphs = {dtype: {graph: open_graph(capture_file(graph, dtype)) for graph in GRAPHS} for dtype in dtypes}
        # Reentrant: what is let go may be let go by whoever looks for room.
        self._lock = threading.RLock()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of what stays now."""
        return self._num_bytes

    def hold(self, tensors: Sequence[Tensor], num_rows: int) -> dict[str, Resident]:
        """Room for outputs [num_rows, ...] that a run is going to write, by name; none at all if there is too little.

        It is given back when nobody refers to the residents any more.
        """
        import onnxruntime

        shapes = {tensor.name: (num_rows, *map(int, tensor.shape[1:])) for tensor in tensors}
        sizes = {tensor.name: math.prod(shapes[tensor.name]) * np.dtype(tensor.dtype).itemsize for tensor in tensors}
        left = sum(sizes.values())
        if not self._take(left):
            return {}
        rows = np.arange(num_rows)
        residents: dict[str, Resident] = {}
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            with using_device():
                for tensor in tensors:
                    # Not from the arena of the model's session, where CUDA graphs would write over it.
                    held = Held(make(shapes[tensor.name], np.dtype(tensor.dtype), *self._place))
                    weakref.finalize(held, self._give_back, sizes[tensor.name]).atexit = False
                    left -= sizes[tensor.name]
                    residents[tensor.name] = Resident(held=held, rows=rows, graphs=self._graphs[tensor.dtype])
        except DeviceFailure as failure:
            # Others use it too. If there is more to it, the run will fail. As text: the error knows who held what.
            log.warning("captures come to the host, for want of memory on the device: %s", str(failure.__cause__))
            return {}
        finally:
            # Of what was not made.
            self._give_back(left)
        return residents

    def _take(self, num_bytes: int) -> bool:
        with self._lock:
            if self._num_bytes + num_bytes > self.max_bytes:
                return False
            self._num_bytes += num_bytes
            return True

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes -= num_bytes
