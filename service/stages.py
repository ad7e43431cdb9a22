"""Stages: where the time of one request went, for the header `Server-Timing` and for traces."""

from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a request's way. Several may have the same name, and they may overlap."""

    name: str
    begin: float
    """Seconds of `time.monotonic`."""
    end: float
    batch_sequences: int = 0
    """Sequences in the batch that ended it; 0 where there was none."""


class Stages:
    """The stages of one request, in the order in which they ended."""

    def __init__(self) -> None:
        self.all: list[Stage] = []

    def add(self, name: str, begin: float, end: float | None = None, *, batch_sequences: int = 0) -> None:
        """Note a stage that began at `begin` and ended at `end`, or just now."""
        end = monotonic() if end is None else end
        self.all.append(Stage(name=name, begin=begin, end=end, batch_sequences=batch_sequences))

    def describe(self) -> str:
        """As `Server-Timing` has it: milliseconds by name, those of one name added up."""
        seconds: dict[str, float] = {}
        for stage in self.all:
            seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.end - stage.begin
        return ", ".join(f"{name};dur={1000 * total:.3f}" for name, total in seconds.items())
