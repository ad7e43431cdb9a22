"""An export job of a service, asked for and followed: its events, what came of it, and who answers with it."""

import json
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from attnserve.certificate import PRECISIONS
from attnserve.patience import PASSING, RETRY_S, retrying
from attnserve.remote import Remote, RemoteError, Reply

EXPORTS = "/v1/exports"
# A service that stops ends its streams, and another one, or the next one, goes on with them.
MAX_RETRIES = 30
# A service looks at its repository every few seconds, and measures a new model for some more.
LOOK_S, MAX_LOOKS = 0.5, 240

Job = dict[str, Any]
Report = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, kw_only=True)
class ServerEvent:
    """A server-sent event."""

    id: str
    name: str
    data: str


def start_export(
    remote: Remote,
    checkpoint: str,
    model: str,
    version: int | str | None = None,
    *,
    precision: str = PRECISIONS[0],
    portable: bool = False,
    top_k: int | None = None,
    activate: bool = True,
    wait: Callable[[float], object] = time.sleep,
) -> Job:
    """Ask for an export.

    Args:
        remote: the service.
        checkpoint: name of an upload, or a path that the service may read.
        model: to which it is exported.
        version: of the model; None is the next one.
        precision: one of `PRECISIONS`.
        portable: whether there are no custom ops in the graph.
        top_k: likeliest ids or classes that the graph chooses itself.
        activate: whether the model answers with it then.
        wait: where the service was away for a moment.

    Raises:
        RemoteError: the service refuses, or is away for long.
    """
    body: dict[str, Any] = {
        "checkpoint": checkpoint,
        "model": model,
        "precision": precision,
        # Only where it is given: a service of an older release would refuse what it does not know.
        "options": {"portable": portable} | ({} if top_k is None else {"top_k": top_k}),
        "activate": activate,
    }
    if version is not None:
        body["version"] = version
    # Should the answer be lost on its way, the job is not asked for twice.
    headers = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    return check_answer(retrying(lambda: remote.ask("POST", EXPORTS, body, headers=headers), wait=wait), "id")


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


def describe_end(job: Job) -> str:
    """What became of an export that is over, in words."""
    state = "was cancelled" if job["state"] == "cancelled" else job["state"]
    step = f" in step {job['step']}" if job["step"] else ""
    reason = f": {job['reason']}" if job["reason"] else ""
    return f"the export of {job['model']}/{job['version']} {state}{step}{reason}"


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
