"""OpenAPI: bodies and answers of the routes, each with examples that work. FastAPI parses and checks neither."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from attnserve.service import schemas
from attnserve.service.formats.negotiation import EVENTS, FORMATS, JSON
from attnserve.service.problems import (
    MEDIA_TYPE,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Gone,
    HeadTooLarge,
    InsufficientStorage,
    InternalError,
    Invalid,
    NotAcceptable,
    NotFound,
    NotInstalled,
    Overloaded,
    PreconditionFailed,
    Problem,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)

Documented = dict[int | str, dict[str, Any]]


def describe_body(model: type[BaseModel], *, is_required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is checked in `preprocess`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, definition in schema.pop("$defs", {}).items():
        schema = _inline(schema, f"#/components/schemas/{name}", definition)
    examples = {f"example {number}": {"value": value} for number, value in enumerate(schema.pop("examples"), 1)}
    return {"requestBody": {"required": is_required, "content": {JSON: {"schema": schema, "examples": examples}}}}


def describe_answer(
    example: object, *problems: type[Problem], formats: Sequence[str] = (), status: int = 200
) -> Documented:
    """`responses` of a route: an example of success, the problems it answers with, and formats besides JSON."""
    content: dict[str, Any] = {JSON: {"example": example}}
    for media_type in formats:
        content[media_type] = {"schema": {"type": "string", **({} if media_type == EVENTS else {"format": "binary"})}}
    described: Documented = {status: {"description": "Done", "content": content}}
    return {**described, **_describe_others(*problems)} if problems else described


def describe_removal(*problems: type[Problem]) -> Documented:
    """`responses` of a route that answers 204."""
    return {204: {"description": "Gone"}, **_describe_others(*problems)}


def describe_problems(*problems: type[Problem]) -> Documented:
    """Those of `responses` that are problems, each with an example."""
    return {
        problem.status: {
            "description": (problem.__doc__ or problem.title).split("\n")[0],
            "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "example": _example_of(problem)}},
        }
        for problem in problems
    }


def _describe_others(*problems: type[Problem]) -> Documented:
    # The last also keeps FastAPI from documenting its own validation error, which no route of ours answers with.
    default = {"description": "Any other problem.", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}}
    return {**describe_problems(*problems), "default": default}


def _inline(value: Any, reference: str, definition: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if value.get("$ref") == reference:
            return definition
        return {key: _inline(item, reference, definition) for key, item in value.items()}
    return [_inline(item, reference, definition) for item in value] if isinstance(value, list) else value


def _example_of(problem: type[Problem]) -> dict[str, Any]:
    faults = {
        Unauthorized: ("Authorization", "expected a key that this service knows, got another"),
        Forbidden: ("Authorization", "expected a key with the scope attention, got batch-job with predict"),
        BadRequest: ("body", "expected JSON, got something else at line 1 column 17: unexpected character"),
        NotFound: ("model", "expected one of nt-dot-product, nt-elliptical, nt-expressive, got 'nt'"),
        Gone: ("capture", "ended at 2026-12-01T12:05:00Z; capture again"),
        NotAcceptable: ("Accept", f"expected one of {JSON}, got 'text/html'"),
        PreconditionFailed: ("If-None-Match", "expected no such file, got one that is there"),
        TooLarge: ("top_k", "sequences x positions x top_k may be at most 65536, got 80000"),
        UnsupportedMediaType: ("Content-Type", f"expected {JSON}, got 'text/plain'"),
        HeadTooLarge: ("head", "expected at most 65536 bytes of path and headers, got more"),
        Invalid: ("sequences[0][3]", "expected an integer id from 0 to 7, got the string 'x'"),
    }
    details = {
        Conflict: "nt-expressive version 3 cannot be served: nt-expressive/3/model.onnx: the bundle is damaged",
        Overloaded: "4090 sequences are waiting and at most 4096 may; 8 more were sent",
        NotInstalled: "exports need dbos, which this service runs without: pip install 'attnserve[jobs]'",
        Unavailable: "nt-expressive is being loaded",
        DeadlineExceeded: "not answered within 250 ms",
        InsufficientStorage: "the disk of uploaded checkpoints is full: No space left on device",
        InternalError: "the model failed on this input; the service's log has details",
    }
    field, message = faults.get(problem, ("", ""))
    detail = f"{field}: {message}" if field else details[problem]
    errors = [{"field": field, "message": message}] if field else []
    return {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "error": detail,
        "errors": errors,
    }


PROBLEM_SCHEMA = _inline(
    schemas.ProblemBody.model_json_schema(),
    "#/$defs/FaultBody",
    schemas.FaultBody.model_json_schema(),
)
PROBLEM_SCHEMA.pop("$defs")

# Answers of the models that `make serve` serves, to the first example of each request.
ENTRIES = [
    {"id": 0, "label": "s0", "probability": 0.9999942, "logit": 13.640566},
    {"id": 4, "label": "s4", "probability": 0.0000021840863, "logit": 0.60625863},
    {"id": 3, "label": "s3", "probability": 0.000001864509, "logit": 0.4480588},
]
PREDICTED: dict[str, Any] = {
    "model": "nt-expressive",
    "version": 1,
    "predictions": [{"positions": [7], "top": [ENTRIES]}],
    "warnings": [],
}
MEASURED = {
    "entropy_bits": 0.8765073,
    "entropy_normalised": 0.40178007,
    "distance": 0.91466475,
    "sink": 0.21883543,
    "self": 0.7768908,
    "previous_token": 0.044021115,
    "duplicate_token": 0.009024833,
    "induction": 0.007859675,
}
ATTENDED: dict[str, Any] = {
    **PREDICTED,
    "tokens": [[{"id": index, "text": f"s{index}", "span": None} for index in (3, 1, 4, 1, 5, 2, 6, 5)]],
    "quantity": "diagnostics",
    "causal": True,
    "layers": [0],
    "variants": ["expressive"],
    "heads": [0],
    "queries": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "axes": {**dict.fromkeys(MEASURED, ("layer", "head")), "collapse": ("layer",)},
    "diagnostics": [{"sequence": 0, "layer": 0, "head": 0, "variant": "expressive", **MEASURED}],
    "layer_diagnostics": [{"sequence": 0, "layer": 0, "collapse": 0.1005883}],
}
SUMMARY: dict[str, Any] = {
    "name": "nt-expressive",
    "version": 1,
    "versions": [1],
    "ready": True,
    "task": "next_token",
    "variants": ["expressive"],
    "num_layers": 1,
    "num_heads": 1,
}
FAILED: dict[str, Any] = {
    "name": "nt-unfinished",
    "version": None,
    "versions": [1],
    "ready": False,
    "reason": "version 1 cannot be served: nt-unfinished/1/model.onnx: listed in the manifest, but missing",
}
MODEL: dict[str, Any] = {
    **SUMMARY,
    "reads_text": False,
    "limits": {"max_length": 512},
    "vocabulary_size": 8,
    "labels": ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"],
    "causal": True,
    "card": {"symbols": 8, "delay": 8},
    "device": "cpu",
}

ASKING = (
    *(BadRequest, NotFound, NotAcceptable, TooLarge, UnsupportedMediaType, Invalid, Overloaded),
    *(InternalError, Unavailable, DeadlineExceeded),
)
PREDICT_ANSWERS = describe_answer(PREDICTED, *ASKING, formats=(*FORMATS[1:], EVENTS))
ATTENTION_ANSWERS = describe_answer(ATTENDED, *ASKING, formats=FORMATS[1:])
LIST_ANSWERS = describe_answer({"models": [SUMMARY, FAILED]})
MODEL_ANSWERS = describe_answer(MODEL, NotFound, Unavailable)
ALIVE_ANSWERS = describe_answer({"status": "alive"})
READY_ANSWERS = describe_answer({"status": "ready"}, Unavailable)
METRICS_ANSWERS: Documented = {
    200: {"description": "Done", "content": {"text/plain": {"example": 'model_ready{model="nt-expressive"} 1.0\n'}}}
}
