"""`Observer`: whom an engine and its queue tell what they do. Nobody listens unless somebody is given."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchRun:
    """A batch that has been answered."""

    lengths: list[int]
    """Steps of each sequence."""
    pads: bool
    """Whether attention computed padding."""
    pack_seconds: float
    compute_seconds: float


class Observer:
    """Told from the worker thread; every method returns at once and never raises."""

    def waited(self, seconds: float) -> None:
        """A sequence has left the queue for a batch."""

    def ran(self, batch: BatchRun) -> None:
        """A batch has been answered."""

    def rendered(self, seconds: float) -> None:
        """An answer has been made."""

    def failed(self) -> None:
        """A batch has raised."""


class Observers(Observer):
    """Passes on to several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def waited(self, seconds: float) -> None:
        """To each."""
        for observer in self._observers:
            observer.waited(seconds)

    def ran(self, batch: BatchRun) -> None:
        """To each."""
        for observer in self._observers:
            observer.ran(batch)

    def rendered(self, seconds: float) -> None:
        """To each."""
        for observer in self._observers:
            observer.rendered(seconds)

    def failed(self) -> None:
        """To each."""
        for observer in self._observers:
            observer.failed()


NOBODY = Observer()
