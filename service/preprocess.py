"""Preprocess: raw body to checked request. Every fault of a client is raised here, before any queue.

The body goes through orjson and the sequences through numpy, not pydantic: pydantic takes 47 s of the event loop for a
million wrong ids and answers with 148 MB. At most `MAX_FAULTS` faults are collected and no input is echoed beyond a few
characters. What a request asks for is counted before it is laid out: a short body can name a lot of work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from attnserve.service.continuation import CONTINUATION_FIELDS, Continuation, parse_continuation
from attnserve.service.deadline import parse_timeout
from attnserve.service.problems import MAX_FAULTS, BadRequest, Fault, Invalid, TooLarge, raise_faults
from attnserve.service.question import FIELDS, Question, parse_question
from attnserve.service.selection import MAX_ENTRIES, describe, parse_steps
from attnserve.service.sequences import Input, Reader, parse_sequences

DEFAULT_TOP_K = 5
# Their defaults depend on the model, or on each other; null is as if they were not there.
NULLABLE = ("top_k", "positions", "attention", "timeout_ms", *CONTINUATION_FIELDS)


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """A request whose every field has been checked."""

    inputs: list[Input]
    positions: list[NDArray[np.int64]]
    """Steps per sequence whose predictions are wanted; of classify_sequence the one that speaks for it."""
    top_k: int
    field: str = "sequences"
    """What the client called the sequences."""
    attention: Question | None = None
    continuation: Continuation | None = None
    timeout_ms: float | None = None
    all_logits: bool = False
    """Whether all logits are answered or compared, not the likeliest entries alone."""

    @property
    def num_entries(self) -> int | None:
        """How many of the likeliest entries of each position will do; None if all logits are needed."""
        question = self.attention
        is_compared = question is not None and (
            question.compare is not None or bool(question.ablate) or "importance" in question.diagnostics
        )
        if self.all_logits or is_compared:
            return None
        return self.top_k if self.continuation is None else self.continuation.num_candidates

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        return [len(read.values) for read in self.inputs]

    @property
    def has_text(self) -> bool:
        """Whether any sequence came as text."""
        return any(read.text is not None for read in self.inputs)


def parse_predict(body: bytes, reader: Reader) -> PredictRequest:
    """Check the body of `POST .../predict`.

    Raises:
        BadRequest: not JSON, or not an object.
        Invalid: a field is missing, unknown, or of a wrong type or value.
        TooLarge: sequences x positions x top_k, or sequences x queries, is beyond `MAX_ENTRIES`.
    """
    document = parse_fields(body)
    check_fields(document, ("sequences", *NULLABLE))
    if "continue" in document:
        return _parse_continuation(document, reader)
    for name in CONTINUATION_FIELDS[1:]:
        if name in document:
            raise Invalid.about(name, f"expected only together with continue, got {describe(document[name])}")
    if "attention" not in document:
        return parse_request(document, reader, None, "")
    attention = document["attention"]
    if not isinstance(attention, dict):
        raise Invalid.about("attention", f"expected an object, got {describe(attention)}")
    check_fields(attention, FIELDS, "attention.")
    return parse_request(document, reader, attention, "attention.")


def parse_attention(body: bytes, reader: Reader) -> PredictRequest:
    """Check the body of `POST .../attention`; raises as `parse_predict`."""
    document = parse_fields(body)
    check_fields(document, ("sequences", "top_k", "positions", "timeout_ms", *FIELDS))
    return parse_request(document, reader, document, "")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        BadRequest: it is anything else.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The message says where; `doc`, which holds the whole body, is not passed on.
        place = f"line {error.lineno} column {error.colno}"
        raise BadRequest.about("body", f"expected JSON, got something else at {place}: {error.msg}") from None
    if not isinstance(document, dict):
        raise BadRequest.about("body", f"expected a JSON object, got {describe(document)}")
    return document


def parse_fields(body: bytes, nullable: Sequence[str] = NULLABLE) -> dict[str, Any]:
    """The fields of a body, but for those of `nullable` that are null; raises as `parse_object`."""
    # Clients made from a schema send null for what nobody set.
    return {name: value for name, value in parse_object(body).items() if value is not None or name not in nullable}


def check_fields(document: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> None:
    """Refuse names that are not known.

    Raises:
        Invalid: names them, behind `prefix`.
    """
    unknown = [name for name in document if name not in known]
    raise_faults(
        [
            Fault(field=f"{prefix}{name[:64]}", message=f"unknown field; expected one of {', '.join(known)}")
            for name in unknown[:MAX_FAULTS]
        ]
    )


def parse_request(
    document: dict[str, Any], reader: Reader, attention: dict[str, Any] | None, prefix: str
) -> PredictRequest:
    """A question that goes on for no tokens.

    Args:
        document: fields of the body, of known names.
        reader: of the model asked.
        attention: fields about attention, if it is asked for.
        prefix: before their names in complaints.
    """
    manifest = reader.manifest
    top_k = _parse_top_k(document, reader, min(DEFAULT_TOP_K, manifest.num_outputs))
    inputs = _parse_inputs(document, reader)
    lengths = [len(read.values) for read in inputs]
    if manifest.task == "classify_sequence":
        if "positions" in document:
            got = describe(document["positions"])
            raise Invalid.about("positions", f"this model answers once per sequence; expected none, got {got}")
        positions = [np.array([manifest.answer_step(length)]) for length in lengths]
        num_positions = len(positions)
    else:
        default = "last" if manifest.task == "next_token" else "all"
        steps = parse_steps(document.get("positions", default), "positions", lengths)
        num_positions = steps.count
    if top_k * num_positions > MAX_ENTRIES:
        raise TooLarge.about(
            "top_k",
            f"sequences x positions x top_k may be at most {MAX_ENTRIES}, got {top_k * num_positions}; "
            "ask for fewer positions or a smaller top_k",
        )
    question = None if attention is None else parse_question(attention, reader, inputs, prefix)
    if question is not None and sum(lengths) > MAX_ENTRIES:
        message = f"expected at most {MAX_ENTRIES} steps, each of which the answer names, got {sum(lengths)}"
        raise TooLarge.about("sequences", f"{message}; ask for fewer sequences at a time")
    return PredictRequest(
        inputs=inputs,
        positions=positions if manifest.task == "classify_sequence" else steps.per_sequence(),
        top_k=top_k,
        attention=question,
        timeout_ms=_parse_timeout(document),
    )


def _parse_continuation(document: dict[str, Any], reader: Reader) -> PredictRequest:
    manifest = reader.manifest
    for name in ("positions", "attention"):
        if name in document:
            raise Invalid.about(name, f"expected none together with continue, got {describe(document[name])}")
    if manifest.task != "next_token":
        raise Invalid.about("continue", f"expected none: this model's task is {manifest.task}, not next_token")
    top_k = _parse_top_k(document, reader, manifest.num_outputs)
    inputs = _parse_inputs(document, reader)
    lengths = [len(read.values) for read in inputs]
    return PredictRequest(
        inputs=inputs,
        positions=[np.array([length - 1]) for length in lengths],
        top_k=top_k,
        continuation=parse_continuation(document, top_k, lengths, manifest.max_length),
        timeout_ms=_parse_timeout(document),
    )


def _parse_timeout(document: dict[str, Any]) -> float | None:
    value = document.get("timeout_ms")
    return None if value is None else parse_timeout(value, "timeout_ms")


def _parse_inputs(document: dict[str, Any], reader: Reader) -> list[Input]:
    if "sequences" not in document:
        raise Invalid.about("sequences", f"missing; expected a list, each item {reader.kinds}")
    return parse_sequences(document["sequences"], reader)


def _parse_top_k(document: dict[str, Any], reader: Reader, default: int) -> int:
    value, size = document.get("top_k", default), reader.manifest.num_outputs
    if type(value) is not int or not 1 <= value <= size:
        what = "the vocabulary" if reader.manifest.num_classes is None else "the classes"
        raise Invalid.about("top_k", f"expected an integer from 1 to {size} ({what}), got {describe(value)}")
    return value
