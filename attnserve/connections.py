"""Connections: to one service, kept from one request to the next where that pays. Standard library only."""

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

# What a connection says that its service has closed while nobody used it.
STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


def connect(url: str, timeout_s: float) -> http.client.HTTPConnection:
    """A connection, which is opened by its first request."""
    place = urlsplit(url)
    assert place.hostname is not None
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    return kind(place.hostname, place.port, timeout=timeout_s)


class Connections:
    """Those to one service that nobody uses right now; several threads may take from them.

    Args:
        url: of the service.
        timeout_s: of each wait for it.
        keep: whether they are kept; else each is closed behind its answer, and the service is told so before.
    """

    def __init__(self, url: str, timeout_s: float, *, keep: bool) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._keep = keep
        self._kept: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    @contextmanager
    def ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; yields the answer, whose body is to be read within the block.

        Raises:
            OSError: no connection, or it broke off.
            http.client.HTTPException: what answers does not speak HTTP.
        """
        told = headers if self._keep else {**headers, "Connection": "close"}
        connection, response = self._send(method, path, body, told)
        try:
            with response:
                yield response
                # What is left of a body would be taken for the next answer.
                is_read = response.isclosed()
        except BaseException:
            connection.close()
            raise
        if not (is_read and self._keep):
            connection.close()
            return
        with self._lock:
            self._kept.append(connection)

    def close(self) -> None:
        """Close those that are kept."""
        with self._lock:
            kept, self._kept = self._kept, []
        for connection in kept:
            connection.close()

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        with self._lock:
            connection = self._kept.pop() if self._kept else None
        if connection is not None:
            try:
                return connection, _exchange(connection, method, path, body, headers)
            except STALE:
                # It was closed before it said anything of this request.
                connection.close()
        connection = connect(self._url, self._timeout_s)
        return connection, _exchange(connection, method, path, body, headers)


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    try:
        connection.request(method, path, body, dict(headers))
        return connection.getresponse()
    except BaseException:
        connection.close()
        raise
