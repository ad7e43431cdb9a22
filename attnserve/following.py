"""Following an export job of a service: its events, what came of it, and the service that answers with it."""

import json
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from attnserve.remote import Remote, RemoteError, Reply

EXPORTS = "/v1/exports"
# A service that stops ends its streams, and another one, or the next one, goes on with them.
RETRY_S, MAX_RETRIES = 2.0, 30
# A service looks at its repository every few seconds, and measures a new model for some more.
LOOK_S, MAX_LOOKS = 0.5, 240
PASSING = frozenset({None, 429, 502, 503, 504})
"""Statuses, or none, that may be another one the next time."""

Job = dict[str, Any]
Report = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, kw_only=True)
class ServerEvent:
    """A server-sent event."""

    id: str
    name: str
    data: str


def follow_events(remote: Remote, job_id: str, report: Report, *, wait: Callable[[float], object] = time.sleep) -> Job:
    """The job when it is over; `report` is told of each line of its log. Goes on where a stream broke off.

    Raises:
        RemoteError: there is no such job, or the service is gone for long.
    """
    seen: str | None = None
    num_failures = 0
    while True:
        headers = {"Accept": "text/event-stream"} | ({} if seen is None else {"Last-Event-ID": seen})
        try:
            with remote.open("GET", f"{path_of(job_id)}/events", headers=headers) as response, remote.explaining():
                for event in read_events(response):
                    num_failures, seen = 0, event.id
                    if event.name == "end":
                        return dict(json.loads(event.data))
                    report(json.loads(event.data))
        except RemoteError as error:
            if error.status not in PASSING or num_failures == MAX_RETRIES:
                raise
        num_failures += 1
        wait(RETRY_S)


def wait_until_served(
    remote: Remote, model: str, version: int, *, wait: Callable[[float], object] = time.sleep
) -> str | None:
    """Wait for a service to answer with a version that is the active one; returns why it does not.

    Raises:
        RemoteError: the service refuses, or is away for long.
    """
    reason = "the service has not noticed it"
    for _ in range(MAX_LOOKS):
        listed = retrying(lambda: remote.ask("GET", "/v1/models"), wait=wait)
        for found in check_answer(listed, "models")["models"]:
            if found["name"] == model:
                if found["ready"] and found["version"] == version:
                    return None
                reason = str(found.get("reason", reason))
                # It is tried again, but not soon.
                if reason.startswith(f"version {version} cannot be served"):
                    return reason
        wait(LOOK_S)
    return reason


def read_events(lines: Iterable[bytes]) -> Iterator[ServerEvent]:
    """The events of a stream; comments are passed over, and an event that breaks off in the middle is none."""
    fields: dict[str, str] = {}
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield ServerEvent(id=fields.get("id", ""), name=fields.get("event", "message"), data=fields["data"])
            fields = {}


def retrying(ask: Callable[[], Any], *, wait: Callable[[float], object] = time.sleep) -> Any:
    """What `ask` returns, which may be asked again where the service was away for a moment.

    Raises:
        RemoteError: it refuses, or is away for long.
    """
    for num_left in reversed(range(3)):
        try:
            return ask()
        except RemoteError as error:
            if error.status not in PASSING or not num_left:
                raise
            wait(RETRY_S)
    raise AssertionError


def check_answer(reply: Reply, field: str) -> dict[str, Any]:
    """The document of an answer, which has at least this field.

    Raises:
        RemoteError: it has not; something else answers there.
    """
    document = reply.document
    if not isinstance(document, dict) or field not in document:
        raise RemoteError("--url: expected a service of attnserve, got an answer of something else")
    return document


def path_of(job_id: str) -> str:
    """Of a job, below the URL of its service."""
    return f"{EXPORTS}/{urllib.parse.quote(job_id, safe='')}"
