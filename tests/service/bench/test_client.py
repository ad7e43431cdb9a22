"""The HTTP client: what it sends, and what it makes of each way not to be answered."""

import asyncio
import resource

import pytest

from attnserve.service.bench.client import open_client, parse_server_timing, raise_file_limit
from attnserve.service.bench.load import Unanswered
from attnserve.service.bench.options import LoadOptions
from tests.conftest import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def ask(answers, *, path="", **options):
    """Ask twice a server that gives these bytes and closes; returns what it was sent and what came of it."""
    sent, ends = [], []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        sent.append(head + await reader.readexactly(2))
        writer.write(answers.pop(0))
        writer.close()

    async def talk():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            client = await open_client(LoadOptions(url=f"http://127.0.0.1:{port}{path}", **{"model": "m", **options}))
            for _ in range(len(answers)):
                try:
                    ends.append(await client.ask(b"{}"))
                except Unanswered as unanswered:
                    ends.append(unanswered.kind)
            await client.close()

    asyncio.run(talk())
    return sent, ends


def test_a_request_carries_key_and_deadline():
    (sent,), (reply,) = ask([OK], api_key="secret", deadline_ms=50)
    lines = sent.decode().split("\r\n")
    assert lines[0] == "POST /v1/models/m/predict HTTP/1.1"
    assert {"Authorization: Bearer secret", "Timeout-Ms: 50", "Content-Type: application/json"} <= set(lines)
    assert lines[-1] == "{}"
    assert (reply.status, reply.server_ms) == (200, {})


def test_and_none_if_there_is_none():
    (sent,), _ = ask([OK])
    assert not any(name in sent for name in (b"Authorization", b"Timeout-Ms", b"Cookie"))


def test_names_are_quoted_and_gateways_may_have_a_path():
    (sent,), _ = ask([OK], model="a/b c", path="/prefix/")
    assert sent.startswith(b"POST /prefix/v1/models/a%2Fb%20c/predict HTTP/1.1\r\n")


def test_every_status_is_an_answer():
    end = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    redirect = b"HTTP/1.1 307 Elsewhere\r\nLocation: /elsewhere\r\n" + end
    full = b"HTTP/1.1 429 Full\r\nServer-Timing: queue;dur=1.5\r\nServer-Timing: compute;dur=2\r\n" + end
    _, (first, second) = ask([redirect, full])
    assert (first.status, second.status) == (307, 429)
    assert second.server_ms == {"queue": 1.5, "compute": 2}


def test_half_an_answer_is_none():
    _, ends = ask([b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"hello\r\n\r\n"])
    assert ends == ["disconnect", "disconnect", "protocol"]


def test_nobody_there():
    async def talk():
        client = await open_client(LoadOptions(url=f"http://127.0.0.1:{free_port()}", model="m"))
        try:
            await client.ask(b"{}")
        finally:
            await client.close()

    with pytest.raises(Unanswered, match="connect"):
        asyncio.run(talk())


def test_no_socket_left(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def talk():
        client = await open_client(LoadOptions(url="http://127.0.0.1:1", model="m"))
        # No file at all may be opened from here on.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await client.ask(b"{}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await client.close()

    with pytest.raises(Unanswered, match="sockets"):
        asyncio.run(talk())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], {}),
        (["queue;dur=1.2, compute;dur=3.4, render;dur=0.1"], {"queue": 1.2, "compute": 3.4, "render": 0.1}),
        (["cache;desc=hit", 'db ; desc="a" ; Dur="5"', "x;dur=1;desc=y"], {"db": 5, "x": 1}),
        (["x;dur=soon, y;dur, ;;, z;dur=-"], {}),
    ],
)
def test_server_timing(headers, expected):
    assert parse_server_timing(headers) == expected


def test_the_limit_of_files_is_raised_and_not_beyond_what_is_allowed(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    infinity = resource.RLIM_INFINITY
    for pair in ((1024, 4096), (1024, infinity), (1024, 1 << 20), (infinity, infinity), (4096, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, pair=pair: pair)
        raise_file_limit()
    assert limits == [(4096, 4096), (65536, infinity), (65536, 1 << 20)]
