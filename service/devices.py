"""`Devices`: one bundle on every device that it is to run on, proven on each; a run goes where least is under way."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attnserve.bound import NoRoom
from attnserve.bundle import BundleError
from attnserve.certificate import Certificate
from attnserve.cuda import CudaOptions
from attnserve.golden import Golden, read_golden, replay
from attnserve.report import Report
from attnserve.runtime import Runtime
from attnserve.settling import settle

log = logging.getLogger(__name__)

# Of whose products TF32 changes something.
WIDE = ("float32", "int8")
STATES = ("failed", "on", "off")
"""Of what golden decides about; of a model on several devices the first of these that is so on one of them."""

Open = Callable[[str, CudaOptions], Runtime]
"""Opens the bundle on a device, "auto", "cpu" or "cuda"."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """How a model uses them."""

    devices: tuple[int, ...]
    """Their numbers."""
    graphs: str
    """`on`: frequent batches are CUDA graphs; `off`: they are not to be; `failed`: golden fails by them."""
    tf32: str
    """`on`: float32 products are rounded to TF32; `off`: they are not to be; `failed`: golden does not bear it."""
    weights_from: int | None = None
    """Attention weights of an answer from which they are computed on the GPU, out of captures that stay there; None:
    never."""


# By identity, and without a repr: it holds sessions.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Proven:
    """A bundle on a device where its golden was replayed."""

    runtime: Runtime
    golden: Golden
    report: Report
    tf32: str
    """As of `Gpus`."""

    def is_sound(self) -> bool:
        """Whether golden is still answered rightly."""
        if self.runtime.residence is not None:
            # Captures that stay for others may have taken all the room: that is no fault of the device.
            with contextlib.suppress(NoRoom):
                return replay(self.runtime, self.golden, certificate=self.report.certificate, stays=True).passed
        return replay(self.runtime, self.golden, certificate=self.report.certificate).passed


class Devices:
    """A bundle on its devices.

    Args:
        open_runtime: opens it.
        device: "auto", "cpu" or "cuda".
        cuda: for each device, of which there is one if that is the CPU.

    Raises:
        BundleError: damaged, or outside its certificate on one of them.
        DeviceError: one of them cannot be used.
    """

    def __init__(self, open_runtime: Open, device: str, cuda: Sequence[CudaOptions]) -> None:
        first, *others = cuda
        proven = [prove(open_runtime, device, first)]
        found = proven[0].runtime.device
        # What was "auto" is so no more: a model is on several GPUs, or on the CPU.
        proven += [prove(open_runtime, found, options) for options in others if found != "cpu"]
        self.proven = tuple(proven)
        self._lock = threading.Lock()
        self._num_running = [0] * len(proven)
        self.weights_from: int | None = None
        """As of `Gpus`; `settle` says so."""

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """One per device, in the order asked for."""
        return tuple(one.runtime for one in self.proven)

    @property
    def report(self) -> Report:
        """Of the device that is furthest from the truth."""
        return max((one.report for one in self.proven), key=lambda report: report.logits)

    @property
    def gpus(self) -> Gpus | None:
        """How it uses GPUs; None on the CPU."""
        if self.runtimes[0].device == "cpu":
            return None
        return Gpus(
            devices=tuple(runtime.gpu for runtime in self.runtimes),
            graphs=min((runtime.graphs for runtime in self.runtimes), key=STATES.index),
            tf32=min((one.tf32 for one in self.proven), key=STATES.index),
            weights_from=self.weights_from,
        )

    @property
    def can_weigh(self) -> bool:
        """Whether captures may stay on all of them, and are weighed rightly there."""
        return all(runtime.residence is not None for runtime in self.runtimes)

    def settle(self, weights_from: int | None) -> None:
        """Weights are computed on the devices from so many on; without them, what they need there is let go."""
        self.weights_from = weights_from
        if weights_from is None:
            for runtime in self.runtimes:
                runtime.residence = None

    @contextlib.contextmanager
    def take(self) -> Iterator[Runtime]:
        """Where the next run should go."""
        with self._lock:
            place = self._num_running.index(min(self._num_running))
            self._num_running[place] += 1
        try:
            yield self.proven[place].runtime
        finally:
            with self._lock:
                self._num_running[place] -= 1

    def is_sound(self) -> bool:
        """Whether golden is still answered rightly on all of them: an error of CUDA stays with the process."""
        return all(one.is_sound() for one in self.proven)

    def forget_graphs(self) -> None:
        """Release the graphs of what was run until now."""
        for runtime in self.runtimes:
            if runtime.recordings is not None:
                with runtime.recordings.turn:
                    runtime.recordings.forget()


def prove(open_runtime: Open, device: str, cuda: CudaOptions) -> Proven:
    """Open a bundle on a device and replay its golden there, in every way that it will run.

    TF32 and CUDA graphs are for models whose golden bears them. Others do without, and the log says so.

    Raises:
        BundleError: damaged, or outside its certificate even so.
        DeviceError: the device cannot be used.
    """
    runtime = open_runtime(device, cuda)
    # Only now: what a bundle lacks has been said.
    golden = read_golden(runtime.folder)
    certificate, tf32 = runtime.manifest.certificate, "off"
    if runtime.device != "cpu" and cuda.tf32_error and certificate.precision in WIDE:
        loose = certificate.allow(cuda.tf32_error, float(np.abs(golden.logits).max()))
        report = replay(runtime, golden, certificate=loose)
        if report.passed:
            certificate, tf32 = loose, "on"
        else:
            tf32 = "failed"
            log.warning("%s: without TF32, whose error is larger than allowed: %s", runtime.folder, report.table())
            # Before another one takes as much of the device's memory.
            del runtime
            runtime = open_runtime(device, replace(cuda, tf32_error=0.0))
    report = replay(runtime, golden, certificate=certificate)
    if report.passed and runtime.recordings is not None:
        report = _prove_graphs(runtime, golden, certificate)
    if not report.passed:
        raise BundleError(f"{runtime.folder}: golden replay failed: {report.table()}")
    reason = None if runtime.device == "cpu" else settle(runtime, golden, certificate)
    if reason is not None:
        log.warning("%s: attention weights are computed on the CPU, they fail on the GPU: %s", runtime.folder, reason)
    return Proven(runtime=runtime, golden=golden, report=report, tf32=tf32)


def _prove_graphs(runtime: Runtime, golden: Golden, certificate: Certificate) -> Report:
    """Golden by CUDA graphs, or plainly where these are wrong."""
    assert runtime.recordings is not None
    report = replay(runtime, golden, certificate=certificate, rehearses=True)
    if report.passed:
        runtime.recordings.forget()
        return report
    runtime.recordings.stop()
    log.warning("%s: without CUDA graphs, by which golden fails: %s", runtime.folder, report.table())
    return replay(runtime, golden, certificate=certificate)
