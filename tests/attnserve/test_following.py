"""Following a job over connections that break, to the end and to the service that answers."""

import json
from contextlib import contextmanager
from email.message import Message
from typing import ClassVar

import pytest

from attnserve.following import MAX_RETRIES, ServerEvent, follow_events, read_events, wait_until_served
from attnserve.remote import Remote, RemoteError, Reply
from tests.fake_exports import LINES, FakeQueue, Service, job_id

pytestmark = pytest.mark.http
ID = job_id(1)


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def url(queue, tmp_path, serve_app):
    return serve_app(Service(tmp_path, queue).app)


def never(_):
    raise AssertionError("nobody waits here")


def test_events_are_read_as_the_standard_has_them():
    stream = [
        b":\n", b"\n", b"id: 0\n", b"event: progress\n", b'data: {"a": 1}\n', b"\n",
        b"retry: 10\n", b"\n", b"data:bare\r\n", b"\r\n", b"id: 1\n", b"data: broken off\n",
    ]  # fmt: skip
    assert list(read_events(stream)) == [
        ServerEvent(id="0", name="progress", data='{"a": 1}'),
        ServerEvent(id="", name="message", data="bare"),
    ]


class Breaking(Remote):
    """Connections of which the first breaks after one event."""

    seen: ClassVar[list[str | None]] = []

    @contextmanager
    def open(self, method, path, document=None, *, headers=None):
        with super().open(method, path, document, headers=headers) as response:
            self.seen.append(headers.get("Last-Event-ID"))
            yield response if len(self.seen) > 1 else self._break(response)

    def _break(self, lines):
        for line in lines:
            yield line
            if not line.strip():
                raise ConnectionResetError("gone")


def test_a_stream_that_breaks_off_goes_on_where_it_was(url, queue):
    queue.put(1, state="running")
    queue.say(1, LINES[0])
    told = []

    def wait(_):
        # Meanwhile the job has gone on.
        queue.say(1, *LINES[1:])
        queue.succeed(1)

    job = follow_events(Breaking(url=url), ID, told.append, wait=wait)
    assert [line["message"] for line in told] == ["2 files", "1 layer", "traced"]
    assert job["state"] == "succeeded"
    assert Breaking.seen == [None, "0"]


def test_a_service_that_is_gone_for_long_is_given_up():
    waits = []
    with pytest.raises(RemoteError, match="expected a service at"):
        follow_events(Remote(url="http://127.0.0.1:1"), ID, never, wait=waits.append)
    assert len(waits) == MAX_RETRIES


class Listing(Remote):
    """Answers with lists of models, one after the other, and then with the last one."""

    def __init__(self, *lists):
        super().__init__()
        object.__setattr__(self, "lists", list(lists))

    def ask(self, *_, **__):
        models = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return Reply(status=200, headers=Message(), body=json.dumps({"models": models}).encode())


READY = {"name": "tiny", "version": 2, "ready": True}


def test_it_waits_until_the_new_version_answers():
    other = {**READY, "name": "other"}
    waits = []
    remote = Listing([other], [other, {**READY, "version": 1}], [{**READY, "ready": False}], [other, READY])
    assert wait_until_served(remote, "tiny", 2, wait=waits.append) is None
    assert len(waits) == 3


def test_a_version_that_cannot_be_served_is_not_waited_for():
    reason = "version 2 cannot be served: the bundle is damaged"
    waits = []
    # Of the version before, that is no news.
    before = {**READY, "version": None, "ready": False, "reason": "version 1 cannot be served: too large"}
    remote = Listing([before], [{**READY, "version": 1, "reason": reason}])
    assert wait_until_served(remote, "tiny", 2, wait=waits.append) == reason
    assert len(waits) == 1


def test_it_does_not_wait_for_ever():
    assert wait_until_served(Listing([]), "tiny", 2, wait=lambda _: None) == "the service has not noticed it"
