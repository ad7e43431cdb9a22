"""Requests about export jobs, checked: bodies, queries and headers. Every fault of a client is raised here."""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attnserve.bundle import is_model_name, is_version
from attnserve.certificate import PRECISIONS
from attnserve.interface import MAX_SIZE
from attnserve.jobs import STATES
from attnserve.service.exports.job import Place
from attnserve.service.preprocess import check_fields, parse_object
from attnserve.service.problems import BadRequest, Invalid, NotFound
from attnserve.service.selection import describe

MAX_BODY_BYTES = 64 * 1024
FIELDS = ("checkpoint", "model", "version", "precision", "options", "activate")
OPTIONS = ("portable", "top_k")
FILTERS = ("state", "model", "limit", "after")
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
IDEMPOTENCY_KEY, LAST_EVENT_ID = "Idempotency-Key", "Last-Event-ID"
# Id of the event that is the last one.
SEEN_ALL = "end"
# Of ids that are made of idempotency keys: anything fixed.
NAMESPACE = uuid.UUID("5d7e3c0b-6d8c-4d52-9a53-3f6f8f0a6c11")
MODEL_NAME = "letters, digits, '.', '_' and '-', a letter or digit first"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is to be exported, and to where."""

    checkpoint: str
    """Name of an upload, or the absolute path of a folder."""
    model: str
    version: int | None = None
    """None is the next free one."""
    precision: str = "float32"
    portable: bool = False
    top_k: int | None = None
    activate: bool = True

    @property
    def is_path(self) -> bool:
        """Whether the checkpoint is a folder, not an upload."""
        return self.checkpoint.startswith("/")

    @property
    def fingerprint(self) -> str:
        """Equal of two requests that ask for the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """Which jobs are to be listed."""

    state: str | None = None
    model: str | None = None
    limit: int = DEFAULT_LIMIT
    after: Place | None = None


def parse_export(body: bytes) -> ExportRequest:
    """Check the body of `POST /v1/exports`.

    Raises:
        BadRequest: not JSON, or not an object.
        Invalid: a field is missing, unknown, or of a wrong type or value.
    """
    # Clients made from a schema send null for what nobody set.
    document = {
        name: value for name, value in parse_object(body).items() if value is not None or name not in FIELDS[2:]
    }
    check_fields(document, FIELDS)
    options = document.get("options", {})
    if not isinstance(options, dict):
        raise Invalid.about("options", f"expected an object, got {describe(options)}")
    check_fields(options, OPTIONS, "options.")
    return ExportRequest(
        checkpoint=_parse_checkpoint(document),
        model=_parse_model(document),
        version=_parse_version(document),
        precision=_parse_precision(document),
        portable=_parse_flag(options, "portable", False, "options."),
        top_k=_parse_top_k(options),
        activate=_parse_flag(document, "activate", True),
    )


def parse_list(query: Sequence[tuple[str, str]]) -> ListRequest:
    """Check the query of `GET /v1/exports`.

    Raises:
        Invalid: a parameter is unknown, there twice, or of a wrong value.
    """
    found = dict(query)
    check_fields(found, FILTERS)
    if len(found) != len(query):
        names = [name for name, _ in query]
        twice = next(name for name in names if names.count(name) > 1)
        raise Invalid.about(twice, "expected each parameter once, got one again")
    limit = found.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
        raise Invalid.about("limit", f"expected an integer from 1 to {MAX_LIMIT}, got {limit[:24]!r}")
    state, model = found.get("state"), found.get("model")
    if state is not None and state not in STATES:
        raise Invalid.about("state", f"expected one of {', '.join(STATES)}, got {state[:24]!r}")
    if model is not None and not is_model_name(model):
        raise Invalid.about("model", f"expected {MODEL_NAME}, got {model[:40]!r}")
    after = found.get("after")
    return ListRequest(state=state, model=model, limit=int(limit), after=None if after is None else read_place(after))


def write_place(place: Place) -> str:
    """A place as the value of `after`."""
    return f"{place.created_ms}.{place.id}"


def read_place(text: str) -> Place:
    """The place that `write_place` wrote.

    Raises:
        Invalid: it did not.
    """
    match = re.fullmatch(r"([0-9]{1,15})\.([0-9a-f-]{36})", text)
    if match is None:
        raise Invalid.about("after", f"expected what `next` of a list says, got {text[:24]!r}")
    return Place(created_ms=int(match[1]), id=match[2])


def check_id(job_id: str) -> str:
    """The id of a job, as it stands in a path.

    Raises:
        NotFound: no job has such an id.
    """
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job_id):
        raise NotFound.about("id", f"expected the id of an export, got {job_id[:40]!r}")
    return job_id


def choose_id(headers: Mapping[str, str], key: str | None) -> str | None:
    """The id of the job that an idempotency key stands for; None if none was sent.

    The key is a string in quotes (draft-ietf-httpapi-idempotency-key-header), or without, as many clients send it. Two
    API keys that choose the same one do not meet.

    Args:
        headers: of the request.
        key: name of its API key.

    Raises:
        BadRequest: it is no such string.
    """
    given = headers.get(IDEMPOTENCY_KEY)
    if given is None:
        return None
    match = re.fullmatch(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x5b\x5d-\x7e]{1,255})', given.strip())
    if match is None:
        expected = "1 to 255 printable ASCII characters in double quotes, none of them a quote or a backslash"
        raise BadRequest.about(IDEMPOTENCY_KEY, f"expected {expected}, got {given[:24]!r}")
    # Names of API keys have no line ends.
    return str(uuid.uuid5(NAMESPACE, f"{key or ''}\n{match[1] or match[2]}"))


def parse_last_event(headers: Mapping[str, str]) -> int | None:
    """The line to go on with, by the last event that a client has seen; None if that was the end.

    Raises:
        BadRequest: no event has such an id.
    """
    given = headers.get(LAST_EVENT_ID)
    if given == SEEN_ALL:
        return None
    if given is not None and not re.fullmatch(r"[0-9]{1,9}", given):
        raise BadRequest.about(LAST_EVENT_ID, f"expected the id of an event, got {given[:24]!r}")
    return 0 if given is None else int(given) + 1


def _parse_checkpoint(document: Mapping[str, Any]) -> str:
    expected = "the name of an uploaded checkpoint, or the absolute path of a folder"
    if "checkpoint" not in document:
        raise Invalid.about("checkpoint", f"missing; expected {expected}")
    value = document["checkpoint"]
    # Longer paths, and those with a NUL in them, no file system takes. Lone surrogates are no JSON to orjson.
    is_path = isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) < 4096
    if not is_path and not (isinstance(value, str) and is_model_name(value)):
        raise Invalid.about("checkpoint", f"expected {expected}, got {describe(value)}")
    return str(value)


def _parse_model(document: Mapping[str, Any]) -> str:
    if "model" not in document:
        raise Invalid.about("model", f"missing; expected {MODEL_NAME}")
    value = document["model"]
    if not isinstance(value, str) or not is_model_name(value):
        raise Invalid.about("model", f"expected {MODEL_NAME}, got {describe(value)}")
    return value


def _parse_version(document: Mapping[str, Any]) -> int | None:
    value = document.get("version")
    if value is None:
        return None
    if type(value) is not int or not is_version(str(value)):
        raise Invalid.about("version", f"expected an integer from 1 to 999999999, got {describe(value)}")
    return value


def _parse_precision(document: Mapping[str, Any]) -> str:
    value = document.get("precision", PRECISIONS[0])
    if not isinstance(value, str) or value not in PRECISIONS:
        raise Invalid.about("precision", f"expected one of {', '.join(PRECISIONS)}, got {describe(value)}")
    return value


def _parse_top_k(options: Mapping[str, Any]) -> int | None:
    value = options.get("top_k")
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_SIZE):
        raise Invalid.about("options.top_k", f"expected an integer from 1 to {MAX_SIZE}, got {describe(value)}")
    return value


def _parse_flag(document: Mapping[str, Any], name: str, default: bool, prefix: str = "") -> bool:
    value = document.get(name, default)
    if not isinstance(value, bool):
        raise Invalid.about(f"{prefix}{name}", f"expected true or false, got {describe(value)}")
    return value
