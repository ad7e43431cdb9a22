"""Stages: where the time of one request went, for the header `Server-Timing` and for traces."""

from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a request's way; of a continuation, which goes through it once per token, all of them together."""

    name: str
    begin: float
    """When the first began, in seconds of `time.monotonic`."""
    end: float
    """When the last ended."""
    seconds: float
    """What they took; between them, other stages had their turn."""
    count: int = 1
    batch_sequences: int = 0
    """Sequences in the batch that ended the last; 0 where there was none."""


class Stages:
    """The stages of one request."""

    def __init__(self) -> None:
        self._by_name: dict[str, Stage] = {}

    @property
    def all(self) -> tuple[Stage, ...]:
        """Those there were, in the order in which they first ended; a copy, as workers may still be noting some."""
        return tuple(self._by_name.values())

    def add(self, name: str, begin: float, end: float | None = None, *, batch_sequences: int = 0) -> None:
        """Note that a stage, perhaps not for the first time, began at `begin` and ended at `end`, or just now."""
        end = monotonic() if end is None else end
        seconds, count, before = end - begin, 1, self._by_name.get(name)
        if before is not None:
            begin, seconds, count = before.begin, before.seconds + seconds, before.count + 1
        self._by_name[name] = Stage(
            name=name, begin=begin, end=end, seconds=seconds, count=count, batch_sequences=batch_sequences
        )

    def describe(self) -> str:
        """As `Server-Timing` has it: milliseconds by name."""
        return ", ".join(f"{stage.name};dur={1000 * stage.seconds:.3f}" for stage in self.all)
