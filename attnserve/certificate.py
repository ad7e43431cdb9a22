"""The certificate: the error a bundle is allowed, measured at export; and what int8 weights cost, where it has them."""

import math
from dataclasses import dataclass, replace

from attnserve.interface import check_choice

PRECISIONS = ("float32", "float16", "bfloat16", "int8")


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

    def allow(self, error: float, largest: float) -> "Certificate":
        """One that allows an error as well, whatever caused it.

        Args:
            error: share of the largest absolute logit, and of 1, the largest weight there is.
            largest: absolute logit of golden.
        """
        logits, maps = max(self.logits.allowed, error * largest), max(self.maps.allowed, error)
        return replace(self, logits=replace(self.logits, allowed=logits), maps=replace(self.maps, allowed=maps))


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What int8 weights cost: answers with them against answers with the weights they were rounded from.

    Of golden's rows, each sequence alone, in PyTorch float64 on both sides, so that nothing but the weights differs.
    """

    num_answers: int
    largest_difference: float
    """Largest absolute difference of a logit."""
    mean_difference: float
    """Mean absolute difference of the logits."""
    top1_agreement: float
    """Share of answers whose likeliest class is the same."""
    kl_bits: float
    """Kullback-Leibler divergence of the answers' probabilities from those before rounding, mean over answers."""

    def __post_init__(self) -> None:
        """Refuse what no comparison could give.

        Raises:
            ValueError: names the field.
        """
        if self.num_answers < 1:
            raise ValueError(f"num_answers: expected at least 1, got {self.num_answers}")
        for name in ("largest_difference", "mean_difference", "top1_agreement", "kl_bits"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {getattr(self, name)}")
        if self.top1_agreement > 1:
            raise ValueError(f"top1_agreement: expected at most 1, got {self.top1_agreement}")

    def table(self) -> str:
        """The figures as text, for people."""
        return (
            f"what rounding the weights changed in {self.num_answers} answers, PyTorch float64 on both sides:\n"
            f"{'largest':>9}  {'mean':>7}  {'same top-1':>10}  {'KL, bits':>8}\n"
            f"{self.largest_difference:>9.1e}  {self.mean_difference:>7.1e}  {self.top1_agreement:>10.2%}"
            f"  {self.kl_bits:>8.1e}"
        )
