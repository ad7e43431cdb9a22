"""A service somewhere else: what commands such as `attnserve push` ask over HTTP. Standard library only."""

import argparse
import http.client
import json
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import attnserve
from attnserve.address import (
    API_KEY,
    DEFAULT_URL,
    FLAGS,
    URL,
    Names,
    check_api_key,
    check_url,
    choose_api_key,
    choose_url,
)
from attnserve.connections import Connections, connect

TIMEOUT_S = 60.0
# How long a service may take to say whether it wants a body. One that says nothing is sent it.
CONTINUE_S = 2.0
PIECE_BYTES = 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
CONTINUE = b"HTTP/1.1 100"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a request."""

    field: str
    message: str
    """What was expected and what came."""


class RemoteError(RuntimeError):
    """The service cannot be reached, or answers with an error; the message has what it says.

    Args:
        message: for people.
        status: of the answer; None if there is none.
        faults: that the answer names.
        retry_after_s: seconds after which the answer says that another try makes sense; None if it does not say.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        faults: Sequence[Fault] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.faults = tuple(faults)
        self.retry_after_s = retry_after_s

    @property
    def field(self) -> str | None:
        """The first field that is wrong, if the answer names one."""
        return self.faults[0].field if self.faults else None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of 2xx."""

    status: int
    headers: Message
    """A mapping, whatever the case of their names."""
    body: bytes = field(repr=False)

    @cached_property
    def document(self) -> Any:
        """Its JSON; None if there is none."""
        return _parse(self.body)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Where a service is, and the key to it.

    Raises:
        ValueError: names the flag, what was expected and what came.
    """

    url: str = DEFAULT_URL
    api_key: str = field(default="", repr=False)
    """Empty: none is sent."""
    timeout_s: float = TIMEOUT_S
    """Of each wait for the service."""
    keep: bool = False
    """Whether connections are kept for the next request; whoever says so closes it."""
    names: Names = FLAGS

    def __post_init__(self) -> None:
        check_url(self.url, self.names.url)
        check_api_key(self.api_key, self.names.api_key)

    @cached_property
    def _connections(self) -> Connections:
        return Connections(self.url, self.timeout_s, keep=self.keep)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._connections.close()

    def ask(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        max_bytes: int | None = MAX_ANSWER_BYTES,
    ) -> Reply:
        """Ask, and read the answer.

        Args:
            method: of HTTP.
            path: below the URL, such as `/v1/checkpoints`.
            document: sent as JSON, unless it is None.
            headers: more of them.
            max_bytes: longest answer that is read; None is any.

        Raises:
            RemoteError: no answer, or another than 2xx.
        """
        with self.open(method, path, document, headers=headers) as response, self.explaining():
            return _read_reply(response, max_bytes)

    @contextmanager
    def open(
        self, method: str, path: str, document: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """As `ask`, but the answer is to be read while it comes, within the block and `explaining`."""
        body = None if document is None else json.dumps(document).encode()
        sent = self._headers({} if body is None else {"Content-Type": "application/json"}, headers or {})
        with ExitStack() as stack:
            with self.explaining():
                response = stack.enter_context(self._connections.ask(method, self._full(path), body, sent))
                self._check(response, f"{method} {path}")
            yield response

    def upload(
        self,
        path: str,
        file: BinaryIO,
        num_bytes: int,
        *,
        headers: Mapping[str, str] | None = None,
        report: Callable[[int], object] = lambda _: None,
    ) -> Reply:
        """PUT a file, piece by piece, once the service has said that it wants it.

        Args:
            path: below the URL.
            file: read from where it stands.
            num_bytes: that it has from there.
            headers: more of them.
            report: told of the size of each piece that was sent.

        Raises:
            RemoteError: no answer, or another than 2xx.
            ValueError: the file has become shorter.
        """
        sent = self._headers({"Content-Length": str(num_bytes), "Connection": "close"}, headers or {})
        with closing(connect(self.url, self.timeout_s)) as connection, self.explaining():
            # What comes over TLS cannot be looked at without taking it.
            can_wait = not isinstance(connection, http.client.HTTPSConnection)
            connection.putrequest("PUT", self._full(path))
            for name, value in (sent | ({"Expect": "100-continue"} if can_wait else {})).items():
                connection.putheader(name, value)
            connection.endheaders()
            if not can_wait or _is_wanted(connection.sock):
                # One that wants no more closes the connection; what it has to say is there all the same.
                with suppress(BrokenPipeError, ConnectionResetError):
                    _send(connection, file, num_bytes, report)
            with connection.getresponse() as response:
                self._check(response, f"PUT {path}")
                return _read_reply(response)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Make a `RemoteError` of whatever goes wrong on the way."""
        try:
            yield
        except TimeoutError:
            raise RemoteError(
                f"{self.names.url}: expected an answer within {self.timeout_s:g} s, got none from {self.url}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RemoteError(f"{self.names.url}: expected a service at {self.url}, got: {reason}") from None

    def _headers(self, *more: Mapping[str, str]) -> dict[str, str]:
        headers = {"User-Agent": f"attnserve/{attnserve.__version__}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        for each in more:
            headers |= each
        return headers

    def _full(self, path: str) -> str:
        return urlsplit(self.url).path.rstrip("/") + path

    def _check(self, response: http.client.HTTPResponse, asked: str) -> None:
        if 200 <= response.status < 300:
            return
        document = _parse(response.read(MAX_ANSWER_BYTES))
        detail = document.get("detail") if isinstance(document, dict) else None
        got = f"{response.status} {detail or response.reason}".rstrip()
        if response.status in (401, 403):
            message = f"{self.names.api_key}: expected one that {self.url} accepts, got {got}"
        else:
            message = f"{self.url}: {asked}: {got}"
        retry_after = response.headers.get("Retry-After", "")
        raise RemoteError(
            message,
            response.status,
            faults=_read_faults(document),
            # A date, which ours never is, is as if it were not there.
            retry_after_s=float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None,
        )


def add_remote_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which service is asked."""
    parser.add_argument("--url", help=f"of the service ({URL}; default: {DEFAULT_URL})")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"sent as Authorization: Bearer; {API_KEY} does not show in the process list"
    )


def read_remote(parsed: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Remote:
    """The service that the options of `add_remote_arguments` or the environment name.

    Raises:
        ValueError: names the flag, what was expected and what came.
    """
    url, api_key = choose_url(parsed.url, environment), choose_api_key(parsed.api_key, environment)
    return Remote(url=url, api_key=api_key)


def _is_wanted(connection: socket.socket) -> bool:
    """Whether the service wants the body: it says so, or nothing; else its answer is waiting."""
    if not select.select([connection], [], [], CONTINUE_S)[0]:
        return True
    return connection.recv(len(CONTINUE), socket.MSG_PEEK) == CONTINUE


def _send(
    connection: http.client.HTTPConnection, file: BinaryIO, num_bytes: int, report: Callable[[int], object]
) -> None:
    left = num_bytes
    # Not to its end: a file that has become longer would go on behind the end of the request.
    while left:
        piece = file.read(min(PIECE_BYTES, left))
        if not piece:
            raise ValueError(f"file: expected {num_bytes} bytes, got {num_bytes - left}; it has changed meanwhile")
        connection.send(piece)
        left -= len(piece)
        report(len(piece))


def _read_reply(response: http.client.HTTPResponse, max_bytes: int | None = MAX_ANSWER_BYTES) -> Reply:
    body = response.read(max_bytes)
    # Asked for so many bytes, it does not tell an end from a broken connection.
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return Reply(status=response.status, headers=response.headers, body=body)


def _read_faults(document: Any) -> list[Fault]:
    errors = document.get("errors") if isinstance(document, dict) else None
    return [
        Fault(field=str(error["field"]), message=str(error.get("message", "")))
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, dict) and "field" in error
    ]


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
