"""Problems: one class per status, and the one JSON shape in which every error leaves the service.

RFC 9457 problem+json, plus a top-level string `error` that Open Inference Protocol clients look for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from fastapi import Response

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 20
HEADERS = {
    # HTTP wants every 401 to say how one makes oneself known.
    401: {"WWW-Authenticate": "Bearer"},
    # These pass by themselves; a client that is not told after how many seconds to come back comes back at once.
    429: {"Retry-After": "1"},
    503: {"Retry-After": "2"},
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with a request."""

    field: str
    """Path of the field, such as `sequences[2][17]`; of a header its name, of the URL's parts theirs."""
    message: str
    """What was expected and what came."""


@dataclass(eq=False)
class Problem(Exception):
    """A request that is answered with an error; subclasses carry the status."""

    detail: str
    faults: Sequence[Fault] = ()
    headers: dict[str, str] = field(default_factory=dict)
    cause: str = ""
    """Which of several things led to it, in a word for metrics; empty where the title says it."""

    status = 500
    title = "Internal error"

    @property
    def reason(self) -> str:
        """A word for metrics, never a client's."""
        return self.cause or self.title.lower().replace(" ", "_")

    @classmethod
    def about(cls, field_name: str, message: str) -> Self:
        """A problem with a single fault."""
        return cls(f"{field_name}: {message}", [Fault(field=field_name, message=message)])


class BadRequest(Problem):
    """The body cannot be parsed at all, or its parts do not fit each other."""

    status, title = 400, "Bad request"


class Unauthorized(Problem):
    """No key, or none that this service knows."""

    status, title = 401, "Unauthorized"


class Forbidden(Problem):
    """The key lacks the scope that the request needs."""

    status, title = 403, "Forbidden"


class NotFound(Problem):
    """No such model, version, checkpoint, capture or route."""

    status, title = 404, "Not found"


class NotAcceptable(Problem):
    """None of the formats asked for exists."""

    status, title = 406, "Not acceptable"


class Conflict(Problem):
    """The state of the repository does not allow it; nothing has changed."""

    status, title = 409, "Conflict"


class Gone(Problem):
    """A capture that ended or was lost; it can be made again."""

    status, title = 410, "Gone"


class PreconditionFailed(Problem):
    """What is there is not what If-Match or If-None-Match says; nothing has changed."""

    status, title = 412, "Precondition failed"


class TooLarge(Problem):
    """The body or the answer would be larger than the limits; refused before any work."""

    status, title = 413, "Too large"


class UnsupportedMediaType(Problem):
    """The body is of a type, or packed in a way, that is not taken."""

    status, title = 415, "Unsupported media type"


class Invalid(Problem):
    """A field has a wrong type or value."""

    status, title = 422, "Invalid request"


class Overloaded(Problem):
    """The queue or the memory for answers is full, or too many uploads are under way; come back later."""

    status, title = 429, "Overloaded"


class HeadTooLarge(Problem):
    """Path and headers are larger than any request needs; nobody has looked at them."""

    status, title = 431, "Head too large"


class InternalError(Problem):
    """A bug or a broken device; the log has the details, the answer does not."""


class NotInstalled(Problem):
    """The service runs without what the route needs; the message names the extra."""

    status, title = 501, "Not installed"


class Unavailable(Problem):
    """Starting, draining or broken."""

    status, title = 503, "Unavailable"


class DeadlineExceeded(Problem):
    """The answer would have come too late; nobody computes it any more."""

    status, title = 504, "Deadline exceeded"


class InsufficientStorage(Problem):
    """The disk is full; nothing is left of the upload."""

    status, title = 507, "Insufficient storage"


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise `Invalid` if there are any faults."""
    if faults:
        more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more)"
        raise Invalid(f"{faults[0].field}: {faults[0].message}{more}", faults)


def describe_problem(problem: Problem) -> dict[str, Any]:
    """A problem as JSON; at most `MAX_FAULTS` faults are named."""
    return {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.detail,
        "errors": [{"field": fault.field, "message": fault.message} for fault in problem.faults[:MAX_FAULTS]],
    }


def render_problem(problem: Problem) -> Response:
    """The HTTP answer for a problem."""
    headers = {**HEADERS.get(problem.status, {}), **problem.headers}
    return Response(orjson.dumps(describe_problem(problem)), problem.status, headers, MEDIA_TYPE)


def problems_table() -> str:
    """The problems as a markdown table, for docs/api.md."""
    lines = ["| status | title | when |", "| --- | --- | --- |"]
    for problem in sorted(Problem.__subclasses__(), key=lambda problem: problem.status):
        lines.append(f"| {problem.status} | {problem.title} | {(problem.__doc__ or '').strip()} |")
    return "\n".join(lines) + "\n"
