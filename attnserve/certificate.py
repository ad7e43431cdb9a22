"""The certificate: the error a bundle is allowed, measured at export."""

import math
from dataclasses import dataclass

from attnserve.interface import check_choice

PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A largest absolute difference from PyTorch float64, over all of golden."""

    reference: float
    """PyTorch's own, in the bundle's precision."""
    allowed: float
    measured: float | None = None
    """ONNX Runtime's, on the machine that exported."""

    def __post_init__(self) -> None:
        """Refuse numbers that no difference is within, or every one.

        Raises:
            ValueError: names the field.
        """
        for name in ("reference", "allowed", "measured"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The error a bundle is allowed, measured at export."""

    precision: str
    logits: Deviation
    maps: Deviation

    def __post_init__(self) -> None:
        """Refuse a precision that no bundle has.

        Raises:
            ValueError: names the field.
        """
        check_choice("precision", self.precision, PRECISIONS)
