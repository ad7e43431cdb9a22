"""Heads of requests: those that anybody needs are answered, larger ones refused before they fill the memory."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from attnserve.service.head import MAX_HEAD_BYTES

pytestmark = pytest.mark.http

ALIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def connection(server):
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connected:
        yield connected


def read_answer(connected):
    """Status, headers and body of the next answer."""
    stream = connected.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip().decode():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, stream.read(int(headers["content-length"]))


def test_a_long_head_is_answered(connection):
    connection.sendall(ALIVE + b"A: %b\r\n\r\n" % (b"a" * (MAX_HEAD_BYTES - 100)))
    assert read_answer(connection)[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        ALIVE + b"A: %b\r\n\r\n" % (b"a" * MAX_HEAD_BYTES),
        ALIVE + b"A: %b\r\n" % (b"a" * 1000) * (MAX_HEAD_BYTES // 1000 + 1) + b"\r\n",
        b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * MAX_HEAD_BYTES),
    ],
    ids=["one header", "many headers", "path"],
)
def test_a_longer_one_is_refused_in_the_shape_of_all_errors(connection, head):
    connection.sendall(head)
    status, headers, body = read_answer(connection)
    assert (status, headers["connection"]) == (431, "close")
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["errors"][0]["field"] == "head"
    assert problem["error"] == problem["detail"]
    assert connection.recv(1) == b""


@pytest.mark.parametrize("piece", [b"aaaaaaaaa", b"A: aaaa\r\n"], ids=["one header", "many headers"])
def test_one_without_an_end_is_given_up(connection, server, piece):
    connection.sendall(ALIVE + b"A: ")
    # More than the buffers of two sockets hold.
    endless = piece * (1 << 23)
    with pytest.raises(ConnectionError):
        connection.sendall(endless)
    assert server.client.get("/healthz").status_code == 200


def test_what_comes_before_a_head_does_not_count(connection):
    body = json.dumps({"sequences": [[1]]}).encode().ljust(4 * MAX_HEAD_BYTES)
    head = b"POST /v1/models/tiny/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
    for _ in range(2):
        connection.sendall(head + b"\r\n" + body + head)
        assert read_answer(connection)[0] == 200
        connection.sendall(b"\r\n" + body)
        assert read_answer(connection)[0] == 200
