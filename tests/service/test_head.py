"""Heads of requests: those that anybody needs are answered, larger ones refused before they fill the memory."""

import asyncio
import json
import socket
from urllib.parse import urlsplit

import pytest

from attnserve.service.head import MAX_HEAD_BYTES, MAX_JOINED_BYTES, JoiningTransport

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


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Transport:
    """What is sent, write by write."""

    def __init__(self):
        self.sent = []

    def write(self, data):
        self.sent.append(data)

    def close(self):
        self.sent.append("close")

    def is_closing(self):
        return "close" in self.sent


@pytest.mark.parametrize(
    ("writes", "sent"),
    [
        ([HEAD, b"body"], [HEAD + b"body"]),
        ([HEAD, b"body", b"more", HEAD, b"body"], [HEAD + b"body", b"more", HEAD + b"body"]),
        ([HEAD, bytes(MAX_JOINED_BYTES)], [HEAD + bytes(MAX_JOINED_BYTES)]),
        ([HEAD, bytes(MAX_JOINED_BYTES + 1)], [HEAD, bytes(MAX_JOINED_BYTES + 1)]),
        ([HEAD], [HEAD]),
        ([HEAD, HEAD], [HEAD + HEAD]),
        ([b""], [b""]),
    ],
    ids=["answer", "two", "at most", "long body", "no body", "heads alone", "nothing"],
)
def test_an_answer_is_sent_with_its_head(writes, sent):
    transport = Transport()

    async def answer():
        joining = JoiningTransport(transport)
        for data in writes:
            joining.write(data)
        # What is kept is kept for no longer than this turn.
        await asyncio.sleep(0)

    asyncio.run(answer())
    assert transport.sent == sent


def test_a_head_without_a_body_is_sent_before_the_connection_is_closed():
    transport = Transport()

    async def answer():
        joining = JoiningTransport(transport)
        joining.write(HEAD)
        assert not joining.is_closing()
        joining.close()
        assert joining.is_closing()
        await asyncio.sleep(0)

    asyncio.run(answer())
    assert transport.sent == [HEAD, "close"]
