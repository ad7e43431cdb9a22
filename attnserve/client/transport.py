"""Transport: questions and answers over HTTP, asked again when a full service says when."""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any, TypeVar

from attnserve.client.tensors import Tensors, read_tensors
from attnserve.patience import REFUSING, retrying
from attnserve.remote import Remote, RemoteError, Reply

Answer = TypeVar("Answer")

SAFETENSORS = "application/x-safetensors"
GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Transport:
    """The way to one service.

    Args:
        remote: the service.
        max_wait_s: how long a refused question waits in all, where the service says when to come back.
        compress: whether answers may be compressed: over a slow network.
        wait: for so many seconds.
    """

    def __init__(
        self, remote: Remote, *, max_wait_s: float, compress: bool, wait: Callable[[float], object] = time.sleep
    ) -> None:
        self.remote = remote
        self.wait = wait
        self._max_wait_s = max_wait_s
        self._compress = compress

    def ask(self, method: str, path: str, document: Any = None, *, accept: str = "application/json") -> Reply:
        """An answer, whatever its size.

        Raises:
            RemoteError: no answer, or another than 2xx.
        """
        headers = {"Accept": accept, "Accept-Encoding": "zstd, gzip" if self._compress else "identity"}
        return retrying(
            lambda: self.remote.ask(method, path, document, headers=headers, max_bytes=None),
            statuses=REFUSING,
            max_seconds=self._max_wait_s,
            wait=self.wait,
        )

    def ask_document(
        self, method: str, path: str, document: Any = None, *, read: Callable[[dict[str, Any]], Answer]
    ) -> Answer:
        """An answer in JSON, as `read` has it; raises as `ask`."""
        reply = self.ask(method, path, document)
        with self._reading():
            return read(json.loads(_unpack(reply)))

    def ask_tensors(
        self, method: str, path: str, document: Any = None, *, read: Callable[[Tensors, Message], Answer]
    ) -> Answer:
        """An answer with arrays, as `read` has it and its headers; raises as `ask`."""
        reply = self.ask(method, path, document, accept=SAFETENSORS)
        with self._reading():
            return read(read_tensors(_unpack(reply)), reply.headers)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Make a `RemoteError` of what is no answer of ours."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError, zlib.error):
            message = f"expected a service of attnserve at {self.remote.url}, got another answer"
            raise RemoteError(f"{self.remote.names.url}: {message}") from None


def _unpack(reply: Reply) -> bytes:
    encoding = reply.headers.get("Content-Encoding", "identity")
    if encoding == "zstd":
        import zstandard

        try:
            # With its size in its head.
            return zstandard.ZstdDecompressor().decompress(reply.body)
        except zstandard.ZstdError as error:
            raise ValueError(f"body: expected zstd, got something else: {error}") from None
    return zlib.decompress(reply.body, GZIP_WINDOW) if encoding == "gzip" else reply.body
