"""Asking a service: what is sent, and what is made of each way to be answered or not."""

import argparse
import io
import json
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from attnserve import remote as module
from attnserve.remote import Remote, RemoteError, add_remote_arguments, read_remote
from tests.conftest import free_port


def reply(status: str, document: object = None, **headers: str) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {text}" for name, text in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


OK = reply("200 OK", {"fine": True}, ETag='"1"')
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
REFUSED = reply("413 Content Too Large", {"detail": "body: expected at most 10 bytes, got more"})


@contextmanager
def serving(script):
    """A server that follows `script(connection, head)` once; yields a `Remote` of it and the heads it got."""
    heads, problems = [], []

    def serve():
        try:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                head = b"".join(iter(stream.readline, b"\r\n")).decode("latin-1")
                heads.append(head)
                script(connection, stream)
        except BaseException as error:
            problems.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield Remote(url=f"http://127.0.0.1:{listener.getsockname()[1]}/prefix/", timeout_s=30), heads
        thread.join()
    assert problems == []


def answering(answer: bytes):
    return lambda connection, stream: connection.sendall(answer)


def test_a_question_and_its_answer():
    with serving(answering(OK)) as (remote, heads):
        found = remote.ask("GET", "/v1/checkpoints")
    assert (found.status, found.document, found.headers["etag"]) == (200, {"fine": True}, '"1"')
    (head,) = heads
    assert head.startswith("GET /prefix/v1/checkpoints HTTP/1.1\r\n")
    assert "Authorization" not in head


def test_what_goes_with_it():
    seen = []

    def script(connection, stream):
        seen.append(json.loads(stream.read(len(b'{"model": "m"}'))))
        connection.sendall(reply("202 Accepted", {}, Location="/v1/exports/1"))

    with serving(script) as (remote, heads):
        keyed = Remote(url=remote.url, api_key="secret")
        found = keyed.ask("POST", "/v1/exports", {"model": "m"}, headers={"Idempotency-Key": "k"})
    assert (found.status, found.headers["Location"]) == (202, "/v1/exports/1")
    assert seen == [{"model": "m"}]
    lines = set(heads[0].split("\r\n"))
    assert {"Authorization: Bearer secret", "Content-Type: application/json", "Idempotency-Key: k"} <= lines
    assert "secret" not in repr(keyed)


def test_an_answer_without_json():
    with serving(answering(reply("204 No Content"))) as (remote, _):
        assert remote.ask("DELETE", "/x").document is None


def test_an_answer_that_is_read_while_it_comes():
    ask_for_more = threading.Event()

    def script(connection, stream):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n")
        assert ask_for_more.wait(30)
        connection.sendall(b"data: 2\n")

    with serving(script) as (remote, _), remote.open("GET", "/events") as response:
        assert response.readline() == b"data: 1\n"
        ask_for_more.set()
        assert response.readline() == b"data: 2\n"
        assert response.readline() == b""


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (REFUSED, 413, "{url}: GET /x: 413 body: expected at most 10 bytes, got more"),
        (
            reply("401 Unauthorized", {"detail": "no"}),
            401,
            "--api-key (ATTNSERVE_API_KEY): expected one that {url} acc",
        ),
        (
            reply("403 Forbidden", {"detail": "no"}),
            403,
            "--api-key (ATTNSERVE_API_KEY): expected one that {url} accepts",
        ),
        (reply("502 Bad Gateway", [1]), 502, "{url}: GET /x: 502 Bad Gateway"),
        (reply("301 Moved", None, Location="/y"), 301, "{url}: GET /x: 301 Moved"),
        (b"HTTP/1.1 500 Oops\r\n\r\n<html>", 500, "{url}: GET /x: 500 Oops"),
        (b"", None, "--url: expected a service at {url}, got: Remote end closed connection without response"),
        (b"SSH-2.0-OpenSSH\r\n", None, "--url: expected a service at {url}, got: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", None, "--url: expected a service at {url}, got: Incomplete"),
    ],
)
def test_what_is_no_good_answer(answer, status, said):
    with serving(answering(answer)) as (remote, _), pytest.raises(RemoteError) as caught:
        remote.ask("GET", "/x")
    assert caught.value.status == status
    assert str(caught.value).startswith(said.format(url=remote.url))


def test_nobody_is_there():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RemoteError, match=f"^--url: expected a service at {url}, got: Connection refused$"):
        Remote(url=url).ask("GET", "/x")


def test_a_name_that_is_none():
    with pytest.raises(RemoteError, match=r"^--url: expected a service at http://nowhere\.invalid, got: "):
        Remote(url="http://nowhere.invalid").ask("GET", "/x")


def test_an_answer_that_does_not_come():
    is_over = threading.Event()
    with serving(lambda *_: is_over.wait(30)) as (remote, _):
        with pytest.raises(RemoteError, match=r"^--url: expected an answer within 0.01 s, got none from http://"):
            Remote(url=remote.url, timeout_s=0.01).ask("GET", "/x")
        is_over.set()


CONTENT = b"weights" * 100_000


def send(remote, content: bytes = CONTENT, num_bytes: int | None = None, report=lambda _: None):
    size = len(content) if num_bytes is None else num_bytes
    return remote.upload("/file", io.BytesIO(content), size, headers={"Content-Digest": "x"}, report=report)


def test_a_file_is_sent_when_the_service_wants_it():
    got, sent = [], []

    def script(connection, stream):
        connection.sendall(GO_ON)
        got.append(stream.read(len(CONTENT)))
        connection.sendall(OK)

    with serving(script) as (remote, heads):
        assert send(remote, report=sent.append).document == {"fine": True}
    assert got == [CONTENT]
    assert sum(sent) == len(CONTENT)
    assert heads[0].startswith("PUT /prefix/file HTTP/1.1\r\n")
    lines = set(heads[0].split("\r\n"))
    assert {f"Content-Length: {len(CONTENT)}", "Expect: 100-continue", "Content-Digest: x"} <= lines


def test_and_not_when_it_does_not():
    def script(connection, stream):
        connection.sendall(REFUSED)
        connection.shutdown(socket.SHUT_WR)
        assert stream.read() == b""

    with serving(script) as (remote, _), pytest.raises(RemoteError, match="413 body: expected at most 10") as caught:
        send(remote, report=lambda _: pytest.fail("sent"))
    assert caught.value.status == 413


def test_a_service_that_says_nothing_is_sent_it(monkeypatch):
    monkeypatch.setattr(module, "CONTINUE_S", 0.01)
    got = []

    def script(connection, stream):
        got.append(stream.read(len(CONTENT)))
        connection.sendall(OK)

    with serving(script) as (remote, _):
        assert send(remote).status == 200
    assert got == [CONTENT]


def test_what_is_said_in_the_middle_is_heard():
    def script(connection, stream):
        connection.sendall(GO_ON)
        stream.read(1000)
        connection.sendall(REFUSED)
        # The rest is not read: the connection is reset under the sender's hands.

    with serving(script) as (remote, _), pytest.raises(RemoteError, match="413 body: expected at most 10"):
        send(remote, CONTENT * 20)


def test_nothing_that_is_said_in_the_middle_is_an_error():
    def script(connection, stream):
        connection.sendall(GO_ON)
        stream.read(1000)

    with serving(script) as (remote, _), pytest.raises(RemoteError, match=r"^--url: expected a service at .*, got: "):
        send(remote, CONTENT * 20)


def test_a_file_that_grows_is_sent_as_far_as_was_said():
    got = []

    def script(connection, stream):
        connection.sendall(GO_ON)
        got.append(stream.read(7))
        connection.sendall(OK)
        connection.shutdown(socket.SHUT_WR)
        got.append(stream.read())

    with serving(script) as (remote, _):
        send(remote, num_bytes=7)
    assert got == [b"weights", b""]


def test_a_file_that_shrinks_is_an_error():
    def script(connection, stream):
        connection.sendall(GO_ON)
        with suppress(ConnectionResetError):
            stream.read()

    with (
        serving(script) as (remote, _),
        pytest.raises(ValueError, match=r"^file: expected 10 bytes, got 7; it has changed meanwhile$"),
    ):
        send(remote, b"weights", num_bytes=10)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://h", "http://", "http://h?k=v", "http://h#f", "http://h:port", "http://[h"]
)
def test_urls_that_are_none(url):
    with pytest.raises(ValueError, match=r"^--url: expected http://HOST:PORT, got '"):
        Remote(url=url)


def test_secrets_are_not_shown():
    with pytest.raises(ValueError, match=r"^--url: expected http://HOST:PORT, got one with a user$"):
        Remote(url="http://me:secret@h")
    with pytest.raises(ValueError, match=r"^--api-key \(ATTNSERVE_API_KEY\): expected printable ASCII, got other ch"):
        Remote(api_key="secret\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "url", "api_key"),
    [
        ([], {}, "http://127.0.0.1:8000", ""),
        ([], {"ATTNSERVE_URL": "https://a", "ATTNSERVE_API_KEY": "k"}, "https://a", "k"),
        (["--url", "http://b"], {"ATTNSERVE_URL": "https://a"}, "http://b", ""),
        (["--api-key", "x"], {"ATTNSERVE_API_KEY": "k"}, "http://127.0.0.1:8000", "x"),
        (["--api-key", ""], {"ATTNSERVE_API_KEY": "k", "ATTNSERVE_URL": ""}, "http://127.0.0.1:8000", ""),
    ],
)
def test_the_service_is_named_by_options_or_the_environment(arguments, environment, url, api_key):
    parser = argparse.ArgumentParser()
    add_remote_arguments(parser)
    assert read_remote(parser.parse_args(arguments), environment) == Remote(url=url, api_key=api_key)
