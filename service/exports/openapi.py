"""OpenAPI of the routes of exports: parameters, answers and examples."""

from typing import Any

import orjson

from attnserve.jobs import STATES
from attnserve.service.exports.request import DEFAULT_LIMIT, IDEMPOTENCY_KEY, LAST_EVENT_ID, MAX_LIMIT
from attnserve.service.formats.negotiation import EVENTS
from attnserve.service.openapi import Documented, describe_answer
from attnserve.service.problems import (
    BadRequest,
    Conflict,
    Invalid,
    NotAcceptable,
    NotFound,
    NotInstalled,
    Overloaded,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from attnserve.service.stream import write_event

# Of `attnserve push checkpoints/nt-expressive --export nt-expressive`, while it runs.
SUMMARY: dict[str, Any] = {
    "id": "95680f49-6e45-5c77-8ce1-475e27d1d096",
    "state": "running",
    "model": "nt-expressive",
    "version": 1,
    "checkpoint": "nt-expressive",
    "precision": "float32",
    "options": {"portable": False, "top_k": None},
    "activate": True,
    "key": None,
    "created": "2026-11-28T02:12:10.000Z",
    "started": "2026-11-28T02:12:10.000Z",
    "ended": None,
    "worker": "build-1",
    "step": "load",
    "progress": 0.02,
    "message": "config, tensors, tokenizer and card",
    "reason": None,
    "parity": None,
}
LOG: list[dict[str, Any]] = [
    {
        "step": "fetch",
        "fraction": 0.0,
        "message": "config.json, model.safetensors, card.json",
        "at": "2026-11-28T02:12:10.798Z",
    },
    {"step": "load", "fraction": 0.02, "message": SUMMARY["message"], "at": "2026-11-28T02:12:16.207Z"},
]
JOB: dict[str, Any] = {
    **SUMMARY,
    "files": {
        "config.json": "32e31fc36a4e3ff31972fef1762762c3940c87e21d6ba7b39d8d9e3792d51eda",
        "model.safetensors": "8b8dff63edc709b72540b52cdda49b268651410df0cda5245f83362e6dd5c239",
        "card.json": "3dd6e8b1223b9b4a94d1c12d23dd2cf33393955a5ac94bc6722cbfa9aaae5270",
    },
    "table": None,
    "report": None,
    "log": LOG,
}
CANCELLED = {**JOB, "state": "cancelled", "message": None, "ended": "2026-11-28T02:12:17.000Z"}
EVENT = write_event("progress", orjson.dumps(LOG[1]), "1").decode()

DOWN = (NotInstalled, Unavailable)
START_ANSWERS = describe_answer(JOB, BadRequest, Conflict, TooLarge, UnsupportedMediaType, Invalid, *DOWN, status=202)
LIST_ANSWERS = describe_answer({"exports": [SUMMARY], "next": None}, Invalid, *DOWN)
JOB_ANSWERS = describe_answer(JOB, NotFound, *DOWN)
CANCEL_ANSWERS = describe_answer(CANCELLED, NotFound, Conflict, *DOWN)
EVENTS_ANSWERS: Documented = {
    **describe_answer(None, BadRequest, NotFound, NotAcceptable, Overloaded, *DOWN),
    200: {"description": "Events, until the job is over", "content": {EVENTS: {"example": EVENT}}},
    204: {"description": "The client has seen the last event"},
}


def _describe_parameter(place: str, name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"in": place, "name": name, "required": False, "schema": schema, "description": description}


START_PARAMETERS = [
    _describe_parameter(
        "header",
        IDEMPOTENCY_KEY,
        {"type": "string", "maxLength": 257},
        "Anything that no other request of this API key has, in double quotes.",
    )
]
LIST_PARAMETERS = [
    _describe_parameter("query", "state", {"type": "string", "enum": list(STATES)}, "Only jobs in this state."),
    _describe_parameter("query", "model", {"type": "string"}, "Only jobs of this model."),
    _describe_parameter(
        "query",
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "How many. A page may be shorter where there are more: `next` says.",
    ),
    _describe_parameter("query", "after", {"type": "string"}, "`next` of the page before."),
]
EVENTS_PARAMETERS = [
    _describe_parameter(
        "header", LAST_EVENT_ID, {"type": "string", "pattern": "^([0-9]{1,9}|end)$"}, "Go on after this event."
    )
]
