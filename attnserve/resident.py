"""`Resident`: captured rows that stay on the device of the run, until somebody asks for them.

A resident stands for the array [N, ...] that it would be on the host: it has a length, and is indexed by steps. What is
computed of it there, the graphs of a `Residence` lay out by head; `fetch` is how it comes to the host.
"""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bound import BoundSession, using_device

PACKAGE = Path(__file__).resolve().parent
LAY_OUT, FINITE, UNITS = GRAPHS = ("lay_out", "finite", "units")
DTYPES = ("float32", "float16")
"""Of captures."""


class Held:
    """A tensor on a device, copied to the host at most once.

    Args:
        value: of ONNX Runtime.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self._fetching = threading.Lock()
        self._fetched: NDArray[Any] | None = None

    def fetch(self) -> NDArray[Any]:
        """All of it.

        Raises:
            DeviceFailure: the device does not hand it out.
        """
        with self._fetching:
            if self._fetched is None:
                with using_device():
                    self._fetched = self.value.numpy()
            return self._fetched


# Without a repr: captures are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class UnitSum:
    """The sum of some rows, each at length 1."""

    total: NDArray[np.float64]
    """[D]"""
    num_rows: int
    """That have a length: of rows of zeros there is nothing in the sum."""


# Without a repr: captures are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Resident:
    """Captured rows of a sequence, or some of them."""

    held: Held
    """The output that they are rows of."""
    rows: NDArray[np.int64]
    """[N] of it."""
    graphs: Mapping[str, BoundSession]
    """Of `capture_file`, for its type, on its device, by names of `GRAPHS`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, steps: slice | NDArray[Any]) -> "Resident":
        return dataclasses.replace(self, rows=self.rows[steps])

    def fetch(self) -> NDArray[Any]:
        """[N, ...] on the host. The first of an output's residents copies all of it.

        Raises:
            DeviceFailure: the device does not hand it out.
        """
        return self.held.fetch()[self.rows]

    def is_finite(self) -> bool:
        """Whether all of its numbers are.

        Raises:
            DeviceFailure: the device does not say.
        """
        (is_finite,) = self.graphs[FINITE].run(None, {"values": self.held.value, "rows": self.rows})
        return bool(is_finite)

    def sum_units(self) -> UnitSum:
        """Of its rows [N, D], of which there is at least one.

        Raises:
            DeviceFailure: the device does not say.
        """
        total, num_rows = self.graphs[UNITS].run(["total", "num_rows"], {"values": self.held.value, "rows": self.rows})
        return UnitSum(total=total.astype(np.float64), num_rows=int(num_rows))


# Without a repr: captures are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResidentHeads:
    """Some heads of a resident [N, heads, E]."""

    resident: Resident
    heads: Sequence[int]

    def lay_out(self, rows: slice) -> Any:
        """Some rows by head, [len(heads), rows, E]: a tensor of ONNX Runtime, in float32, on the device.

        Raises:
            DeviceFailure: the device does not.
        """
        resident = self.resident
        feeds = {
            "values": resident.held.value,
            "rows": resident.rows[rows],
            "heads": np.array(self.heads, np.int64),
        }
        return resident.graphs[LAY_OUT].run_there(feeds)


Captured = NDArray[Any] | Resident
"""Captured rows of a sequence, wherever they are."""


def fetch(captured: Captured) -> NDArray[Any]:
    """Captured rows on the host.

    Raises:
        DeviceFailure: the device that they are on does not hand them out.
    """
    return captured.fetch() if isinstance(captured, Resident) else captured


def is_finite(captured: Captured) -> bool:
    """Whether all numbers are; asked where they are.

    Raises:
        DeviceFailure: the device that they are on does not say.
    """
    return captured.is_finite() if isinstance(captured, Resident) else bool(np.isfinite(captured).all())


def sum_units(captured: Captured) -> UnitSum:
    """Of rows [N, D], of which there is at least one; where they are.

    Raises:
        DeviceFailure: the device that they are on does not say.
    """
    if isinstance(captured, Resident):
        return captured.sum_units()
    wide = captured.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    units = wide[norms > 0] / norms[norms > 0, None]
    return UnitSum(total=units.sum(0), num_rows=len(units))


def capture_file(graph: str, dtype: str) -> Path:
    """One of `GRAPHS`, which `python -m attnserve.export.resident attnserve` has written."""
    return PACKAGE / f"{graph}.{dtype}.onnx"
