"""How questions travel: again when the service says, compressed if that was asked for, and never as something else."""

import gzip
import json

import pytest
import zstandard

from attnserve.client.transport import SAFETENSORS, Transport
from attnserve.remote import Remote, RemoteError, Reply
from tests.attnserve.client.conftest import make_headers, write


class Scripted(Remote):
    """Answers with what it was given, one after the other."""

    def __init__(self, *answers):
        super().__init__()
        object.__setattr__(self, "answers", list(answers))
        object.__setattr__(self, "asked", [])

    def ask(self, method, path, document=None, *, headers=None, max_bytes=0):
        assert max_bytes is None
        self.asked.append((method, path, document, headers))
        answer = self.answers.pop(0)
        if isinstance(answer, RemoteError):
            raise answer
        return answer


def reply(body: bytes, **headers: str) -> Reply:
    return Reply(status=200, headers=make_headers(**headers), body=body)


def never(_):
    raise AssertionError("nobody waits here")


def make_transport(*answers, compress=False, max_wait_s=10.0, wait=never):
    return Transport(Scripted(*answers), max_wait_s=max_wait_s, compress=compress, wait=wait)


def test_a_document():
    transport = make_transport(reply(b'{"fine": true}'))
    assert transport.ask_document("POST", "/x", {"a": 1}, read=dict) == {"fine": True}
    assert transport.remote.asked == [
        ("POST", "/x", {"a": 1}, {"Accept": "application/json", "Accept-Encoding": "identity"})
    ]


def test_tensors_and_their_headers():
    transport = make_transport(reply(write({"fine": True}, {}), attention_dtype="float32"))
    tensors, headers = transport.ask_tensors("GET", "/x", read=lambda *answer: answer)
    assert tensors.document == {"fine": True}
    assert headers["Attention-Dtype"] == "float32"
    assert transport.remote.asked[0][3]["Accept"] == SAFETENSORS


@pytest.mark.parametrize(("encoding", "pack"), [("zstd", zstandard.compress), ("gzip", gzip.compress)])
def test_compressed_answers(encoding, pack):
    transport = make_transport(reply(pack(b'{"fine": true}'), content_encoding=encoding), compress=True)
    assert transport.ask_document("GET", "/x", read=dict) == {"fine": True}
    assert transport.remote.asked[0][3]["Accept-Encoding"] == "zstd, gzip"


def test_a_full_service_is_asked_again_when_it_says():
    waits = []
    refusals = [RemoteError("full", 429, retry_after_s=4), RemoteError("draining", 503, retry_after_s=2)]
    transport = make_transport(*refusals, reply(b"{}"), wait=waits.append)
    assert transport.ask_document("GET", "/x", read=dict) == {}
    assert waits == [4, 2]


def test_one_that_is_full_for_long_is_given_up():
    waits = []
    refusals = [RemoteError("full", 429, retry_after_s=6) for _ in range(5)]
    with pytest.raises(RemoteError, match="full"):
        make_transport(*refusals, wait=waits.append).ask("GET", "/x")
    assert waits == [6]


@pytest.mark.parametrize("status", [None, 400, 404, 422, 504])
def test_what_waiting_does_not_help_is_said_at_once(status):
    with pytest.raises(RemoteError, match="no"):
        make_transport(RemoteError("no", status)).ask("GET", "/x")


@pytest.mark.parametrize("body", [b"", b"[1]", b"<html>", json.dumps("text").encode(), b'{"message": "hello"}'])
@pytest.mark.parametrize("ask", ["ask_document", "ask_tensors"])
def test_something_else_that_answers(ask, body):
    with pytest.raises(RemoteError, match="--url: expected a service of attnserve at http://127"):
        getattr(make_transport(reply(body)), ask)("GET", "/x", read=lambda document, *_: document["models"])


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_is_not_packed_as_it_says(encoding):
    with pytest.raises(RemoteError, match="expected a service of attnserve"):
        make_transport(reply(b"{}", content_encoding=encoding)).ask_document("GET", "/x", read=dict)
