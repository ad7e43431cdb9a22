"""Preprocess: raw body to checked request. Every fault of a client is raised here, before any queue.

The body goes through orjson and the sequences through numpy, not pydantic: pydantic takes 47 s of the event loop for a
million wrong ids and answers with 148 MB. At most `MAX_FAULTS` faults are collected and no input is echoed beyond a few
characters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.service.problems import MAX_FAULTS, BadRequest, Fault, invalid, raise_faults, too_large

MAX_ENTRIES = 65_536
DEFAULT_TOP_K = 5
DIAGNOSTICS = ("entropy", "distance", "sink", "previous_token", "self", "received")
DEFAULT_DIAGNOSTICS = DIAGNOSTICS[:-1]
QUANTITIES = ("diagnostics", "weights")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """Which part of the attention is wanted; all indices absolute and checked."""

    layers: list[int]
    heads: list[int]
    queries: list[NDArray[np.int64]]
    """Steps per sequence."""
    quantity: str
    diagnostics: tuple[str, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """A request whose every field has been checked."""

    sequences: list[NDArray[np.int64]]
    positions: list[NDArray[np.int64]]
    """Steps per sequence whose predictions are wanted."""
    top_k: int
    attention: AttentionRequest | None


def parse_predict(body: bytes, manifest: Manifest) -> PredictRequest:
    """Check the body of `POST .../predict`.

    Raises:
        BadRequest: not JSON, or not an object.
        Invalid: a field is missing, unknown, or of a wrong type or value.
        TooLarge: sequences x positions x top_k is beyond `MAX_ENTRIES`.
    """
    document = _parse_object(body)
    _check_fields(document, ("sequences", "top_k", "positions", "attention"))
    request = _parse_common(document, manifest)
    attention = document.get("attention")
    if attention is None:
        return request
    if not isinstance(attention, dict):
        raise invalid("attention", f"expected an object, got {describe(attention)}")
    _check_fields(attention, ATTENTION_FIELDS, "attention.")
    return _with_attention(request, parse_selection(attention, manifest, request.sequences, "attention."))


def parse_attention(body: bytes, manifest: Manifest) -> PredictRequest:
    """Check the body of `POST .../attention`; raises as `parse_predict`."""
    document = _parse_object(body)
    _check_fields(document, ("sequences", "top_k", "positions", *ATTENTION_FIELDS))
    request = _parse_common(document, manifest)
    return _with_attention(request, parse_selection(document, manifest, request.sequences, ""))


ATTENTION_FIELDS = ("layers", "heads", "queries", "quantity", "diagnostics", "dtype")


def parse_selection(
    fields: dict[str, Any], manifest: Manifest, sequences: Sequence[NDArray[np.int64]], prefix: str
) -> AttentionRequest:
    """Check which layers, heads, queries and quantity are asked for."""
    quantity = _parse_choice(fields, "quantity", QUANTITIES, prefix)
    names = fields.get("diagnostics", list(DEFAULT_DIAGNOSTICS))
    if not isinstance(names, list) or not names or not all(name in DIAGNOSTICS for name in names if _is_str(name)):
        raise invalid(f"{prefix}diagnostics", f"expected a list of {', '.join(DIAGNOSTICS)}, got {describe(names)}")
    if not all(_is_str(name) for name in names):
        raise invalid(f"{prefix}diagnostics", f"expected a list of names, got {describe(names)}")
    queries = fields.get("queries", "all")
    return AttentionRequest(
        layers=_parse_indices(fields.get("layers", "all"), f"{prefix}layers", len(manifest.layers), "layers").tolist(),
        heads=_parse_indices(fields.get("heads", "all"), f"{prefix}heads", manifest.num_heads, "heads").tolist(),
        queries=[
            _parse_steps(queries, f"{prefix}queries", index, len(sequence)) for index, sequence in enumerate(sequences)
        ],
        quantity=quantity,
        diagnostics=tuple(dict.fromkeys(names)),
        dtype=_parse_choice(fields, "dtype", DTYPES, prefix),
    )


def describe(value: object) -> str:
    """Say what a JSON value is, echoing no more than a few characters of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # type: ignore[index]
    if isinstance(value, int | float):
        return f"the number {value!r:.24}"
    if isinstance(value, str):
        return f"the string {value[:24]!r}" + ("..." if len(value) > 24 else "")
    return "a list" if isinstance(value, list) else "an object"


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The message says where; `doc`, which holds the whole body, is not passed on.
        message = f"expected JSON, got something else at line {error.lineno} column {error.colno}: {error.msg}"
        raise BadRequest(f"body: {message}", [Fault(field="body", message=message)]) from None
    if not isinstance(document, dict):
        message = f"expected a JSON object, got {describe(document)}"
        raise BadRequest(f"body: {message}", [Fault(field="body", message=message)])
    return document


def _check_fields(document: dict[str, Any], known: Sequence[str], prefix: str = "") -> None:
    unknown = [name for name in document if name not in known]
    raise_faults(
        [
            Fault(field=f"{prefix}{name[:64]}", message=f"unknown field; expected one of {', '.join(known)}")
            for name in unknown[:MAX_FAULTS]
        ]
    )


def _parse_common(document: dict[str, Any], manifest: Manifest) -> PredictRequest:
    sequences = parse_sequences(document.get("sequences"), manifest)
    top_k = _parse_top_k(document.get("top_k"), manifest)
    wanted = document.get("positions", "last")
    positions = [
        _parse_steps(wanted, "positions", index, len(sequence)) for index, sequence in enumerate(sequences)
    ]
    num_entries = top_k * sum(len(steps) for steps in positions)
    if num_entries > MAX_ENTRIES:
        raise too_large(
            "top_k",
            f"sequences x positions x top_k may be at most {MAX_ENTRIES}, got {num_entries}; "
            "ask for fewer positions or a smaller top_k",
        )
    if top_k > manifest.vocabulary_size:
        raise invalid("top_k", f"expected at most {manifest.vocabulary_size} (the vocabulary), got {top_k}")
    return PredictRequest(sequences=sequences, positions=positions, top_k=top_k, attention=None)


def _with_attention(request: PredictRequest, attention: AttentionRequest) -> PredictRequest:
    return PredictRequest(
        sequences=request.sequences, positions=request.positions, top_k=request.top_k, attention=attention
    )


def parse_sequences(value: Any, manifest: Manifest) -> list[NDArray[np.int64]]:
    """Turn lists of ids, or of labels, into arrays of ids; names every fault up to `MAX_FAULTS`."""
    if not isinstance(value, list):
        raise invalid("sequences", f"expected a list of lists of ids, got {describe(value)}")
    if not value:
        raise invalid("sequences", "expected at least one sequence, got none")
    ids_by_label = {label: index for index, label in enumerate(manifest.labels or ())}
    faults: list[Fault] = []
    sequences = []
    for index, items in enumerate(value):
        field = f"sequences[{index}]"
        if not isinstance(items, list):
            kinds = "ids or labels" if ids_by_label else "ids"
            faults.append(Fault(field=field, message=f"expected a list of {kinds}, got {describe(items)}"))
        elif not items:
            faults.append(Fault(field=field, message="expected at least one id, got none"))
        elif len(items) > manifest.max_length:
            message = f"expected at most {manifest.max_length} steps, got {len(items)}"
            faults.append(Fault(field=field, message=message))
        else:
            sequences.append(_parse_ids(items, field, manifest.vocabulary_size, ids_by_label, faults))
        if len(faults) >= MAX_FAULTS:
            break
    raise_faults(faults)
    return sequences


def _parse_ids(
    items: list[Any], field: str, vocabulary_size: int, ids_by_label: dict[str, int], faults: list[Fault]
) -> NDArray[np.int64]:
    kinds = set(map(type, items))
    # A set of types, not isinstance: True is an int in Python and numpy would turn it into 1 without a word.
    if kinds == {int}:
        if 0 <= min(items) and max(items) < vocabulary_size:
            return np.array(items, np.int64)
    elif kinds == {str} and ids_by_label and all(item in ids_by_label for item in items):
        return np.array([ids_by_label[item] for item in items], np.int64)
    expect_labels = kinds == {str} and bool(ids_by_label)
    expected = "a label of this model" if expect_labels else f"an integer id from 0 to {vocabulary_size - 1}"
    if {int, str} <= kinds and ids_by_label:
        expected += " (a sequence is either all ids or all labels)"
    for place, item in enumerate(items):
        right = item in ids_by_label if expect_labels else type(item) is int and 0 <= item < vocabulary_size
        if not right:
            faults.append(Fault(field=f"{field}[{place}]", message=f"expected {expected}, got {describe(item)}"))
            if len(faults) >= MAX_FAULTS:
                break
    return np.empty(0, np.int64)


def _parse_top_k(value: Any, manifest: Manifest) -> int:
    if value is None:
        return min(DEFAULT_TOP_K, manifest.vocabulary_size)
    if type(value) is not int or value < 1:
        raise invalid("top_k", f"expected an integer from 1 to {manifest.vocabulary_size}, got {describe(value)}")
    return value


def _parse_steps(value: Any, field: str, sequence: int, length: int) -> NDArray[np.int64]:
    """Steps of one sequence: "last", "all" or a list of indices."""
    if value == "last":
        return np.array([length - 1])
    return _parse_indices(value, field, length, f"steps of sequences[{sequence}]", also='"last", ')


def _parse_indices(value: Any, field: str, size: int, what: str, also: str = "") -> NDArray[np.int64]:
    """Absolute indices from "all" or a list in which negative ones count from the end."""
    if value == "all":
        return np.arange(size)
    if not isinstance(value, list) or not value:
        raise invalid(field, f'expected {also}"all" or a list of at least one index, got {describe_list(value)}')
    if len(value) > MAX_ENTRIES:
        raise too_large(field, f"expected at most {MAX_ENTRIES} indices, got {len(value)}")
    faults = [
        Fault(
            field=f"{field}[{place}]",
            message=f"expected an integer from {-size} to {size - 1} ({size} {what}), got {describe(item)}",
        )
        for place, item in _first_faults(value, lambda item: type(item) is int and -size <= item < size)
    ]
    raise_faults(faults)
    return np.array(value, np.int64) % size


def _first_faults(items: Sequence[Any], is_right: Callable[[Any], bool]) -> list[tuple[int, Any]]:
    found = []
    for place, item in enumerate(items):
        if not is_right(item):
            found.append((place, item))
            if len(found) >= MAX_FAULTS:
                break
    return found


def describe_list(value: Any) -> str:
    """As `describe`, telling an empty list from others."""
    return "an empty list" if value == [] else describe(value)


def _parse_choice(fields: dict[str, Any], name: str, choices: Sequence[str], prefix: str) -> str:
    value = fields.get(name, choices[0])
    if not _is_str(value) or value not in choices:
        raise invalid(f"{prefix}{name}", f"expected one of {', '.join(choices)}, got {describe(value)}")
    return str(value)


def _is_str(value: Any) -> bool:
    return isinstance(value, str)
