"""Selectors: steps of sequences by their index, or by what stands there, a token or a span of characters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.selection import MAX_ENTRIES, describe, parse_steps
from attnserve.service.sequences import Input, Reader

SELECTORS = '{"token": ...}, {"span": [first, end]}, '


def parse_selector(value: Any, field: str, reader: Reader, inputs: Sequence[Input]) -> list[NDArray[np.int64]]:
    """Absolute steps per sequence.

    Args:
        value: from a request.
        field: its name.
        reader: of the model asked.
        inputs: of the request.

    Raises:
        Invalid: there is no such step in one of the sequences.
        TooLarge: more steps than an answer may name.
    """
    if not isinstance(value, dict):
        steps = parse_steps(value, field, [len(read.values) for read in inputs], also=SELECTORS)
        _check_count(steps.count, field)
        return steps.per_sequence()
    if len(value) != 1 or next(iter(value)) not in ("token", "span"):
        raise Invalid.about(field, f"expected {SELECTORS}or indices, got an object of other fields")
    ((kind, wanted),) = value.items()
    if kind == "token":
        found = _find_token(wanted, f"{field}.token", reader, inputs)
    else:
        found = _find_span(wanted, f"{field}.span", inputs)
    for number, steps_of_one in enumerate(found):
        if not len(steps_of_one):
            message = f"expected a {kind} that sequences[{number}] has, got {describe(wanted)}"
            raise Invalid.about(f"{field}.{kind}", message)
    _check_count(sum(map(len, found)), field)
    return found


def _find_token(token: Any, field: str, reader: Reader, inputs: Sequence[Input]) -> list[NDArray[np.int64]]:
    if not isinstance(token, str) and type(token) is not int:
        raise Invalid.about(field, f"expected the text or the id of a token, got {describe(token)}")
    return [reader.find_token(read, token) for read in inputs]


def _find_span(span: Any, field: str, inputs: Sequence[Input]) -> list[NDArray[np.int64]]:
    """Steps whose tokens stand for at least one of the characters from the first to before the end."""
    if not isinstance(span, list) or len(span) != 2 or not all(type(place) is int for place in span):
        raise Invalid.about(field, f"expected [first, end], characters of the text, got {describe(span)}")
    first, end = span
    if not 0 <= first < end:
        raise Invalid.about(field, f"expected 0 <= first < end, got [{first!r:.24}, {end!r:.24}]")
    found = []
    for number, read in enumerate(inputs):
        if read.spans is None:
            raise Invalid.about(field, f"expected texts, which have characters; sequences[{number}] is none")
        spans = np.array([(0, 0) if one is None else one for one in read.spans], np.int64)
        found.append(np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > first) & (spans[:, 0] < spans[:, 1])))
    return found


def _check_count(count: int, field: str) -> None:
    if count > MAX_ENTRIES:
        what = field.rpartition(".")[2]
        message = f"sequences x {what} may be at most {MAX_ENTRIES}, got {count}; ask for fewer at a time"
        raise TooLarge.about(field, message)


def drop_steps(steps: list[NDArray[np.int64]], special: list[NDArray[np.bool_]], field: str) -> list[NDArray[np.int64]]:
    """The steps that are no special tokens."""
    kept = [one[~gone[one]] for one, gone in zip(steps, special, strict=True)]
    for number, one in enumerate(kept):
        if not len(one):
            raise Invalid.about(field, f"expected steps of sequences[{number}] that are no special tokens")
    return kept
