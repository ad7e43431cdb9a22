"""`Budget`: memory that requests may hold while they are not in a batch."""

import contextlib
from collections.abc import Iterator

from attnserve.service.problems import Overloaded, TooLarge


class Budget:
    """A number of bytes shared by all requests in flight.

    A body is limited by `max_body_bytes` and a batch by `max_batch_bytes`, but there may be a thousand bodies, and the
    logits, queries and keys of a batch outlive it until they are rendered, which is slower than running batches. Used
    from the event loop only, so it needs no lock.

    Args:
        max_bytes: of all requests together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    @contextlib.contextmanager
    def hold(self, num_bytes: int, field: str = "sequences") -> Iterator[None]:
        """Hold bytes for the length of a `with` block.

        Args:
            num_bytes: of one request.
            field: of the request, which needs them.

        Raises:
            TooLarge: more than there ever will be.
            Overloaded: more than is left now.
        """
        if num_bytes > self.max_bytes:
            raise TooLarge.about(
                field,
                f"body, inputs, logits, queries and keys may take {self.max_bytes} bytes, those of this request need "
                f"{num_bytes}; ask for fewer sequences, positions or layers at a time",
            )
        if self.num_bytes + num_bytes > self.max_bytes:
            raise Overloaded(
                f"requests in flight hold {self.num_bytes} of {self.max_bytes} bytes, this one needs {num_bytes} more",
                cause="memory",
            )
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes
