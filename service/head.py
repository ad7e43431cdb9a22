"""Heads: the line and headers of a request, bounded while they are read, and of an answer, sent with its body."""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from attnserve.service.problems import MEDIA_TYPE, HeadTooLarge, describe_problem

MAX_HEAD_BYTES = 64 * 1024
# Longer bodies are not copied behind their heads: no system call would send them whole.
MAX_JOINED_BYTES = 64 * 1024


class JoiningTransport:
    """A transport that sends the head of an answer together with its body, where uvicorn writes one after the other.

    A process that is killed between the two has sent half an answer, and no gateway asks another one any more. A head
    that nothing follows at once, as that of a stream, goes out in the next turn of the loop.

    Args:
        transport: of the connection; all but `write` and `close` is its own.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or keep what looks like a head until more comes or this turn of the loop ends."""
        if self._head:
            if len(data) <= MAX_JOINED_BYTES:
                data = self._head + data
            else:
                self._transport.write(self._head)
            self._head = b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection when all is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, which would keep a head of any size in memory, and take quadratic time for a long header.

    Whole heads are measured. One that does not end is given up with the first read beyond the limit after the one that
    it began in, and no read is larger than 256 KiB.
    """

    _is_in_head = False
    _is_too_large = False
    _unfinished_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection."""
        super().connection_made(JoiningTransport(transport))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Bytes of a connection."""
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_HEAD_BYTES:
                self._is_too_large = True
                # As uvicorn does.
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._unfinished_bytes = 0

    def on_headers_complete(self) -> None:
        """A head ends.

        Raises:
            ValueError: it is larger than it may be; the parser has uvicorn refuse it then.
        """
        self._is_in_head = False
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > MAX_HEAD_BYTES:
            self._is_too_large = True
            raise ValueError(f"a head of {num_bytes} bytes")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what was read and close the connection; of a head that is too large, in the shape of all errors."""
        if not self._is_too_large:
            super().send_400_response(msg)
            return
        problem = HeadTooLarge.about("head", f"expected at most {MAX_HEAD_BYTES} bytes of path and headers, got more")
        body = orjson.dumps(describe_problem(problem))
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[problem.status] + head.encode() + body)
        self.transport.close()
