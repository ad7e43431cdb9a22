"""What a variant is: a formula that turns scores into weights, and the ONNX op it is exported as.

Shape letters, in this package and in docs/attention.md:

    T packed rows      B sequences        N steps of the longest sequence
    H query heads      K key heads (K divides H; query head h reads key head h // (H / K))
    E query/key size   V value size
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Weigh(Protocol):
    """Scores to weights, row by row: the formula that makes a variant."""

    def __call__(
        self, scores: Float[Tensor, "*heads Q K"], allowed: Bool[Tensor, "*#heads Q K"], *, epsilon: float = 0.0
    ) -> Float[Tensor, "*heads Q K"]:
        """Weigh `scores` (already scaled) over the keys that are `allowed`; a row without any is all zero."""
        ...


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to attend. Adding one is two small files and two lines: see CONTRIBUTING.md."""

    name: str
    """In configs, manifests and answers."""
    op: str
    """The attention node it is exported as, in domain `attnserve`."""
    weighting: str
    """The graphs that recompute its weights from queries and keys: `weights/<weighting>.onnx`."""
    weigh: Weigh
    metric_op: str | None = None
    """The node that estimates its metric, if it has one; the metric is multiplied into the query."""
    formula: str
    source: str
