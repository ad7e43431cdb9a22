"""`BoundSession`: a session on a device, asked as one on the CPU is, of which inputs and outputs may be on the device.

Not for sessions that record CUDA graphs: what they take from their arena may not stay (`attnserve/recordings.py`).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.traffic import CUDA


class DeviceFailure(RuntimeError):
    """A device did not compute what it was asked, or did not hand it out; its own error is the cause."""


class NoRoom(DeviceFailure):
    """A device has no room for what should stay there."""


class BoundSession:
    """A session on a device.

    Args:
        session: of it.
        device: "cuda"; "cpu" computes the same, for tests.
        gpu: its number.
    """

    def __init__(self, session: Any, *, device: str, gpu: int) -> None:
        self._session = session
        self._place = (device, gpu)

    def get_outputs(self) -> Any:
        """Names and types of its outputs."""
        return self._session.get_outputs()

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs by name, or all of them, copied to the host.

        Args:
            names: of them.
            feeds: arrays, or tensors of ONNX Runtime, which are not copied where they are on the device.

        Raises:
            DeviceFailure: it fails.
        """
        with using_device():
            return list(self._run(names, feeds).copy_outputs_to_cpu())

    def run_there(self, feeds: Mapping[str, Any]) -> Any:
        """Its one output, a tensor of ONNX Runtime that stays on the device; arguments and errors as `run`."""
        with using_device():
            (value,) = self._run(None, feeds).get_outputs()
            return value

    def _run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> Any:
        import onnxruntime

        binding = self._session.io_binding()
        for name, value in feeds.items():
            if not isinstance(value, onnxruntime.OrtValue):
                # Not `ascontiguousarray`, which makes a list of one of a number.
                value = onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C"))
            binding.bind_ortvalue_input(name, value)
        for name in [output.name for output in self._session.get_outputs()] if names is None else names:
            binding.bind_output(name, *self._place)
        run_bound(self._session, binding)
        return binding


def run_bound(session: Any, binding: Any, options: Any = None) -> None:
    """Run what is bound. A run that fails, or is ended, is waited for before that is raised.

    ONNX Runtime waits for no such run, and the device goes on with what was launched: it reads inputs and writes
    outputs, whose memory is somebody else's as soon as the binding is gone.
    """
    try:
        session.run_with_iobinding(binding, options)
    except Exception:
        # A device that is lost would only say so once more.
        with contextlib.suppress(Exception):
            binding.synchronize_outputs()
        raise


@contextlib.contextmanager
def using_device() -> Iterator[None]:
    """Use the device for some milliseconds; not within another use of it.

    Raises:
        DeviceFailure: whatever ONNX Runtime raises.
    """
    with CUDA.run():
        try:
            yield
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, none of them public.
            raise DeviceFailure("the device failed") from error
