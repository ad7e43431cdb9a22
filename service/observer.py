"""`Observer`: whom an engine and its queue tell what they do. Nobody listens unless `service.metrics` does."""


class Observer:
    """Told from the worker thread; every method returns at once and never raises."""

    def waited(self, seconds: float) -> None:
        """A sequence has left the queue for a batch."""

    def ran(self, *, lengths: list[int], pack_seconds: float, compute_seconds: float) -> None:
        """A batch of sequences of these lengths has been answered."""

    def rendered(self, seconds: float) -> None:
        """An answer has been made."""

    def failed(self) -> None:
        """A batch has raised."""


NOBODY = Observer()
