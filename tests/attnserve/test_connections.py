"""Connections: kept where that was said, never used with something left in them, and replaced when they are stale."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from attnserve.connections import Connections

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def serving(*conversations: list[bytes]) -> Iterator[tuple[str, list[list[str]]]]:
    """A server: a connection per conversation, an answer per request in it; yields its URL and the heads that came."""
    heads: list[list[str]] = []

    def serve() -> None:
        for answers in conversations:
            connection, _ = listener.accept()
            heads.append([])
            with connection, connection.makefile("rb") as stream:
                for answer in answers:
                    heads[-1].append(b"".join(iter(stream.readline, b"\r\n")).decode())
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        thread.join()


@pytest.fixture
def connect() -> Iterator[Callable[..., Connections]]:
    made: list[Connections] = []

    def make(url: str, *, keep: bool = True) -> Connections:
        made.append(Connections(url, 30.0, keep=keep))
        return made[-1]

    yield make
    for connections in made:
        connections.close()


def ask(connections: Connections, path: str = "/") -> bytes:
    with connections.ask("GET", path, None, {}) as response:
        return response.read()


def ask_and_fail(connections: Connections) -> float:
    with connections.ask("GET", "/", None, {}) as response:
        return 1 / (len(response.read()) - 2)


def test_one_serves_all_questions_one_after_the_other(connect: Callable[..., Connections]) -> None:
    with serving([OK, OK]) as (url, heads):
        connections = connect(url)
        assert [ask(connections), ask(connections)] == [b"{}", b"{}"]
        connections.close()
    assert "Connection: close" not in heads[0][0]


def test_each_has_its_own_unless_they_are_to_be_kept(connect: Callable[..., Connections]) -> None:
    with serving([OK], [OK]) as (url, heads):
        connections = connect(url, keep=False)
        assert [ask(connections), ask(connections)] == [b"{}", b"{}"]
    assert all("Connection: close" in head for (head,) in heads)


def test_one_that_the_service_has_closed_meanwhile_is_replaced(connect: Callable[..., Connections]) -> None:
    with serving([OK], [OK]) as (url, heads):
        connections = connect(url)
        assert ask(connections, "/first") == b"{}"
        assert ask(connections, "/second") == b"{}"
    assert [head.split()[1] for (head,) in heads] == ["/first", "/second"]


def test_one_that_was_not_read_to_its_end_is_not_used_again(connect: Callable[..., Connections]) -> None:
    with serving([OK], [OK]) as (url, _):
        connections = connect(url)
        with connections.ask("GET", "/", None, {}) as response:
            assert response.read(1) == b"{"
        assert ask(connections) == b"{}"


def test_one_whose_reader_fails_is_not_used_again(connect: Callable[..., Connections]) -> None:
    with serving([OK], [OK]) as (url, _):
        connections = connect(url)
        with pytest.raises(ZeroDivisionError):
            ask_and_fail(connections)
        assert ask(connections) == b"{}"


def test_a_service_that_was_never_there_is_asked_once(connect: Callable[..., Connections]) -> None:
    with serving([b""]) as (url, heads), pytest.raises(ConnectionError):
        ask(connect(url))
    assert len(heads) == 1
