"""Jobs and answers: what is wanted of one sequence, and what a run said about it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attnserve.resident import Captured, fetch
from attnserve.top import Top, choose_top
from attnserve.weighing import Weighing


# Without a repr: inputs and answers are user data, and what can be printed ends up in a log one day.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Job:
    """One sequence and what is wanted of it."""

    sequence: NDArray[Any]
    """[n] ids or [n, F] feature vectors."""
    positions: NDArray[np.int64]
    """[P] steps whose logits are wanted."""
    captures: frozenset[str] = frozenset()
    """Names of the outputs to capture over all steps."""
    head_scale: NDArray[np.float32] | None = None
    """[layers, heads] factor on every head's output; None is 1."""
    stays: bool = False
    """Whether its captures may stay on the device, to be weighed there."""
    top_k: int | None = None
    """How many of the likeliest entries of each position will do; None if all logits are wanted."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Answer(ABC):
    """What a run said about one sequence."""

    captures: Mapping[str, Captured]
    """By output name, [n, ...] each."""
    weighing: Weighing | None = None
    """Of the device where the captures are; None where they are on the host."""

    def to_host(self) -> Self:
        """The same with captures on the host.

        Raises:
            DeviceFailure: the device does not hand them out.
        """
        if self.weighing is None:
            return self
        captures = {name: fetch(captured) for name, captured in self.captures.items()}
        return replace(self, captures=captures, weighing=None)

    @abstractmethod
    def find_top(self, top_k: int) -> Top:
        """The likeliest entries of each position, no more of them than the job wanted."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether all logits are."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LogitsAnswer(Answer):
    """With all logits."""

    logits: NDArray[np.float32]
    """[P, W]"""

    def find_top(self, top_k: int) -> Top:
        """Chosen from the logits."""
        return choose_top(self.logits, top_k)

    def is_finite(self) -> bool:
        """By looking at them."""
        return bool(np.isfinite(self.logits).all())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TopAnswer(Answer):
    """With the likeliest entries, which the graph has chosen: its logits were not fetched."""

    top: Top
    """[P, K]"""

    def find_top(self, top_k: int) -> Top:
        """The first of those that are there."""
        assert top_k <= self.top.ids.shape[1], "a job is answered so if that many will do"
        return self.top.cut(top_k)

    def is_finite(self) -> bool:
        """As the graph says, which has seen them all."""
        return bool(np.isfinite(self.top.normaliser).all())


def logits_of(answer: Answer) -> NDArray[np.float32]:
    """[P, W] all logits, for who did not say in the job that the likeliest will do."""
    assert isinstance(answer, LogitsAnswer), "asked with top_k, a job has the likeliest entries alone"
    return answer.logits
