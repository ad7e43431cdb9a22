"""Preprocess: raw body to checked request. Every fault of a client is raised here, before any queue.

The body goes through orjson and the sequences through numpy, not pydantic: pydantic takes 47 s of the event loop for a
million wrong ids and answers with 148 MB. At most `MAX_FAULTS` faults are collected and no input is echoed beyond a few
characters. What a request asks for is counted before it is laid out: a short body can name a lot of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.service.problems import MAX_FAULTS, BadRequest, Fault, Invalid, TooLarge, raise_faults
from attnserve.service.selection import FIELDS, MAX_ENTRIES, Selection, describe, parse_selection, parse_steps

DEFAULT_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """A request whose every field has been checked."""

    sequences: list[NDArray[np.int64]]
    positions: list[NDArray[np.int64]]
    """Steps per sequence whose predictions are wanted."""
    top_k: int
    attention: Selection | None


@dataclass(frozen=True)
class _Vocabulary:
    """What the items of a sequence may be."""

    manifest: Manifest

    @property
    def size(self) -> int:
        return self.manifest.vocabulary_size

    @cached_property
    def ids_by_label(self) -> dict[str, int]:
        # Only once a label is met: a vocabulary of 50,000 takes milliseconds, and most requests send ids.
        return {label: index for index, label in enumerate(self.manifest.labels or ())}


def parse_predict(body: bytes, manifest: Manifest) -> PredictRequest:
    """Check the body of `POST .../predict`.

    Raises:
        BadRequest: not JSON, or not an object.
        Invalid: a field is missing, unknown, or of a wrong type or value.
        TooLarge: sequences x positions x top_k, or sequences x queries, is beyond `MAX_ENTRIES`.
    """
    document = _parse_object(body)
    _check_fields(document, ("sequences", "top_k", "positions", "attention"))
    attention = document.get("attention")
    if attention is None:
        return _parse_request(document, manifest, None, "")
    if not isinstance(attention, dict):
        raise Invalid.about("attention", f"expected an object, got {describe(attention)}")
    _check_fields(attention, FIELDS, "attention.")
    return _parse_request(document, manifest, attention, "attention.")


def parse_attention(body: bytes, manifest: Manifest) -> PredictRequest:
    """Check the body of `POST .../attention`; raises as `parse_predict`."""
    document = _parse_object(body)
    _check_fields(document, ("sequences", "top_k", "positions", *FIELDS))
    return _parse_request(document, manifest, document, "")


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The message says where; `doc`, which holds the whole body, is not passed on.
        place = f"line {error.lineno} column {error.colno}"
        raise BadRequest.about("body", f"expected JSON, got something else at {place}: {error.msg}") from None
    if not isinstance(document, dict):
        raise BadRequest.about("body", f"expected a JSON object, got {describe(document)}")
    return document


def _check_fields(document: dict[str, Any], known: Sequence[str], prefix: str = "") -> None:
    unknown = [name for name in document if name not in known]
    raise_faults(
        [
            Fault(field=f"{prefix}{name[:64]}", message=f"unknown field; expected one of {', '.join(known)}")
            for name in unknown[:MAX_FAULTS]
        ]
    )


def _parse_request(
    document: dict[str, Any], manifest: Manifest, attention: dict[str, Any] | None, prefix: str
) -> PredictRequest:
    if "sequences" not in document:
        raise Invalid.about("sequences", "missing; expected a list of lists of ids")
    top_k = _parse_top_k(document, manifest)
    sequences = parse_sequences(document["sequences"], manifest)
    lengths = [len(sequence) for sequence in sequences]
    positions = parse_steps(document.get("positions", "last"), "positions", lengths)
    if top_k * positions.count > MAX_ENTRIES:
        raise TooLarge.about(
            "top_k",
            f"sequences x positions x top_k may be at most {MAX_ENTRIES}, got {top_k * positions.count}; "
            "ask for fewer positions or a smaller top_k",
        )
    return PredictRequest(
        sequences=sequences,
        positions=positions.per_sequence(),
        top_k=top_k,
        attention=None if attention is None else parse_selection(attention, manifest, lengths, prefix),
    )


def _parse_top_k(document: dict[str, Any], manifest: Manifest) -> int:
    value = document.get("top_k", min(DEFAULT_TOP_K, manifest.vocabulary_size))
    if type(value) is not int or not 1 <= value <= manifest.vocabulary_size:
        expected = f"an integer from 1 to {manifest.vocabulary_size} (the vocabulary)"
        raise Invalid.about("top_k", f"expected {expected}, got {describe(value)}")
    return value


def parse_sequences(value: Any, manifest: Manifest) -> list[NDArray[np.int64]]:
    """Turn lists of ids, or of labels, into arrays of ids; names every fault up to `MAX_FAULTS`."""
    if not isinstance(value, list):
        raise Invalid.about("sequences", f"expected a list of lists of ids, got {describe(value)}")
    if not value:
        raise Invalid.about("sequences", "expected at least one sequence, got none")
    if len(value) > MAX_ENTRIES:
        raise TooLarge.about("sequences", f"expected at most {MAX_ENTRIES} sequences, got {len(value)}")
    vocabulary = _Vocabulary(manifest)
    faults: list[Fault] = []
    sequences = []
    for index, items in enumerate(value):
        field = f"sequences[{index}]"
        if not isinstance(items, list):
            kinds = "ids" if manifest.labels is None else "ids or labels"
            faults.append(Fault(field=field, message=f"expected a list of {kinds}, got {describe(items)}"))
        elif not items:
            faults.append(Fault(field=field, message="expected at least one id, got none"))
        elif len(items) > manifest.max_length:
            message = f"expected at most {manifest.max_length} steps, got {len(items)}"
            faults.append(Fault(field=field, message=message))
        else:
            sequences.append(_parse_ids(items, field, vocabulary, faults))
        if len(faults) >= MAX_FAULTS:
            break
    raise_faults(faults)
    return sequences


def _parse_ids(items: list[Any], field: str, vocabulary: _Vocabulary, faults: list[Fault]) -> NDArray[np.int64]:
    # A set of types, not isinstance: True is an int in Python and numpy would turn it into 1 without a word.
    kinds = set(map(type, items))
    has_labels = vocabulary.manifest.labels is not None
    if kinds == {int} and min(items) >= 0 and max(items) < vocabulary.size:
        return np.array(items, np.int64)
    expect_labels = has_labels and kinds == {str}
    if expect_labels:
        ids = [vocabulary.ids_by_label.get(item, -1) for item in items]
        if min(ids) >= 0:
            return np.array(ids, np.int64)
    expected = "a label of this model" if expect_labels else f"an integer id from 0 to {vocabulary.size - 1}"
    if has_labels and {int, str} <= kinds:
        expected += " (a sequence is either all ids or all labels)"
    for place, item in enumerate(items):
        right = ids[place] >= 0 if expect_labels else type(item) is int and 0 <= item < vocabulary.size
        if not right:
            faults.append(Fault(field=f"{field}[{place}]", message=f"expected {expected}, got {describe(item)}"))
            if len(faults) >= MAX_FAULTS:
                break
    return np.empty(0, np.int64)
