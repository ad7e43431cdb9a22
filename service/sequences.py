"""Sequences: from a request's JSON to what the model reads, and from there to the tokens an answer shows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.packing import add_leading_row
from attnserve.service.problems import MAX_FAULTS, Fault, Invalid, TooLarge, raise_faults
from attnserve.service.selection import MAX_ENTRIES, describe
from attnserve.text import Span, TextError, TextReader

CLS = "[cls]"
# Tokenizers take a microsecond and hundreds of bytes over every character, which is one byte of a body: texts are
# counted first.
MAX_CHARACTERS_PER_STEP = 32
# A tuple of two integers, and its place in a list.
SPAN_BYTES = 128
# Features beyond it are no measurements, and a model that squares them may overflow without a trace in its answer: an
# infinite variance makes a norm of zeros.
MAX_NUMBER = 1e12
NO_STEPS: NDArray[np.int64] = np.empty(0, np.int64)


# Without a repr: inputs are user data, and what can be printed ends up in a log one day.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Input:
    """One sequence as the model reads it."""

    values: NDArray[Any]
    """[n] ids, or [n, F] feature vectors with the leading row if the model has one."""
    text: str | None = None
    """What the ids were read from."""
    spans: list[Span | None] | None = None
    """Place of each token in `text`."""

    @property
    def num_bytes(self) -> int:
        """Memory it takes; a character is up to four bytes."""
        return self.values.nbytes + 4 * len(self.text or "") + SPAN_BYTES * len(self.spans or ())


@dataclass(frozen=True)
class Reader:
    """What the sequences of a model may be, and what its ids are called."""

    manifest: Manifest
    text: TextReader | None = None
    """If the model reads text."""

    @cached_property
    def token_labels(self) -> dict[str, int]:
        """Id by label; empty if labels name no tokens."""
        labels = self.manifest.labels if self.manifest.task == "next_token" else None
        return {label: index for index, label in enumerate(labels or ())}

    @property
    def kinds(self) -> str:
        """What one sequence may be, in words."""
        if self.manifest.num_features is not None:
            return f"a list of vectors of {self.manifest.num_features} numbers"
        ids = "a list of ids or labels" if self.token_labels else "a list of ids"
        return ids if self.text is None else f"a text or {ids}"

    def name_token(self, index: int) -> str | None:
        """Label of a token id, else its text, if it has either."""
        if self.token_labels:
            assert self.manifest.labels is not None
            return self.manifest.labels[index]
        return None if self.text is None else self.text.describe(index)

    def name_class(self, index: int) -> str | None:
        """Label of a class; for next_token, the name of a token."""
        if self.manifest.task == "next_token":
            return self.name_token(index)
        return None if self.manifest.labels is None else self.manifest.labels[index]

    def list_tokens(self, read: Input) -> list[dict[str, Any]]:
        """`{"id", "text", "span"}` of every step: `text` is what `span` cuts out of the text sent."""
        if self.manifest.num_features is not None:
            texts = [CLS if self.manifest.leading_row and step == 0 else None for step in range(len(read.values))]
            return [{"id": None, "text": text, "span": None} for text in texts]
        ids = read.values.tolist()
        if read.text is None or read.spans is None:
            return [{"id": index, "text": self.name_token(index), "span": None} for index in ids]
        text = read.text
        return [
            {"id": index, "text": self.name_token(index) if span is None else text[slice(*span)], "span": span}
            for index, span in zip(ids, read.spans, strict=True)
        ]

    def find_token(self, read: Input, token: str | int) -> NDArray[np.int64]:
        """Steps at which a token stands: by its id, or by its text or label, blanks around it left out."""
        if isinstance(token, int):
            return np.flatnonzero(read.values == token) if self.manifest.num_features is None else NO_STEPS
        if read.spans is None and self.manifest.num_features is None:
            # Every id is named once, however often it stands there: naming one takes a tokenizer microseconds.
            ids, places = np.unique(read.values, return_inverse=True)
            is_meant = np.array([_is_named(self.name_token(index), token) for index in ids.tolist()])
            return np.flatnonzero(is_meant[places])
        return np.flatnonzero([_is_named(step["text"], token) for step in self.list_tokens(read)])

    def find_special(self, read: Input) -> NDArray[np.bool_]:
        """Which steps are special tokens: those of the tokenizer that stand for no text, and a leading row."""
        special: NDArray[np.bool_]
        if self.manifest.num_features is not None:
            special = (np.arange(len(read.values)) == 0) & self.manifest.leading_row
            return special
        special = np.isin(read.values, [] if self.text is None else self.text.special_ids)
        if read.spans is not None:
            special |= np.array([span is None for span in read.spans])
        return special


def parse_sequences(value: Any, reader: Reader, name: str = "sequences") -> list[Input]:
    """Turn lists of ids, labels or feature vectors, and texts, into arrays; names every fault up to `MAX_FAULTS`.

    Args:
        value: from a request.
        reader: of the model asked.
        name: of the field that `value` is.
    """
    if not isinstance(value, list):
        raise Invalid.about(name, f"expected a list, each item {reader.kinds}, got {describe(value)}")
    if not value:
        raise Invalid.about(name, "expected at least one sequence, got none")
    if len(value) > MAX_ENTRIES:
        raise TooLarge.about(name, f"expected at most {MAX_ENTRIES} sequences, got {len(value)}")
    limit = MAX_CHARACTERS_PER_STEP * MAX_ENTRIES
    num_characters = sum(len(items) for items in value if isinstance(items, str))
    if num_characters > limit:
        raise TooLarge.about(name, f"expected at most {limit} characters in all, got {num_characters}")
    faults: list[Fault] = []
    read = []
    num_steps, has_text = 0, False
    for index, items in enumerate(value):
        found = _parse_sequence(items, f"{name}[{index}]", reader, faults)
        if found is not None:
            read.append(found)
            num_steps, has_text = num_steps + len(found.values), has_text or found.text is not None
        # While they are read, so that no more are: the answer names every token of a request with texts.
        if has_text and num_steps > MAX_ENTRIES:
            message = f"expected at most {MAX_ENTRIES} tokens in all where there are texts, got more"
            raise TooLarge.about(name, f"{message}; ask for fewer sequences at a time")
        if len(faults) >= MAX_FAULTS:
            break
    raise_faults(faults)
    return read


def _is_named(name: str | None, token: str) -> bool:
    return name is not None and token in (name, name.strip())


def _parse_sequence(items: Any, field: str, reader: Reader, faults: list[Fault]) -> Input | None:
    manifest = reader.manifest
    unit = "id" if manifest.num_features is None else "vector"
    if isinstance(items, str) and reader.text is not None:
        return _read_text(items, field, reader.text, manifest.max_length, faults)
    if not isinstance(items, list):
        faults.append(Fault(field=field, message=f"expected {reader.kinds}, got {describe(items)}"))
    elif not items:
        faults.append(Fault(field=field, message=f"expected at least one {unit}, got none"))
    elif len(items) > manifest.max_length:
        faults.append(Fault(field=field, message=f"expected at most {manifest.max_length} steps, got {len(items)}"))
    elif manifest.num_features is not None:
        features = _parse_features(items, field, manifest.num_features, faults)
        return Input(values=add_leading_row(features) if manifest.leading_row else features)
    else:
        return Input(values=_parse_ids(items, field, reader, faults))
    return None


def _read_text(text: str, field: str, reader: TextReader, max_length: int, faults: list[Fault]) -> Input | None:
    limit = MAX_CHARACTERS_PER_STEP * max_length
    if len(text) > limit:
        message = f"expected a text of at most {limit} characters, got {len(text)}"
        faults.append(Fault(field=field, message=message))
        return None
    try:
        encoded = reader.encode(text)
    except TextError as error:
        faults.append(Fault(field=field, message=str(error)))
        return None
    if not 1 <= len(encoded.ids) <= max_length:
        message = f"expected a text of 1 to {max_length} tokens, got {len(encoded.ids)}"
        faults.append(Fault(field=field, message=message))
        return None
    return Input(values=encoded.ids, text=text, spans=encoded.spans)


def _parse_ids(items: list[Any], field: str, reader: Reader, faults: list[Fault]) -> NDArray[np.int64]:
    size, ids_by_label = reader.manifest.vocabulary_size, reader.token_labels
    assert size is not None
    # A set of types, not isinstance: True is an int in Python and numpy would turn it into 1 without a word.
    kinds = set(map(type, items))
    if kinds == {int} and min(items) >= 0 and max(items) < size:
        return np.array(items, np.int64)
    expect_labels = bool(ids_by_label) and kinds == {str}
    if expect_labels:
        ids = [ids_by_label.get(item, -1) for item in items]
        if min(ids) >= 0:
            return np.array(ids, np.int64)
    expected = "a label of this model" if expect_labels else f"an integer id from 0 to {size - 1}"
    if ids_by_label and {int, str} <= kinds:
        expected += " (a sequence is either all ids or all labels)"
    for place, item in enumerate(items):
        right = ids[place] >= 0 if expect_labels else type(item) is int and 0 <= item < size
        if not right:
            faults.append(Fault(field=f"{field}[{place}]", message=f"expected {expected}, got {describe(item)}"))
            if len(faults) >= MAX_FAULTS:
                break
    return np.empty(0, np.int64)


def _parse_features(items: list[Any], field: str, size: int, faults: list[Fault]) -> NDArray[np.float32]:
    if set(map(type, items)) == {list} and set(map(len, items)) == {size}:
        kinds = set().union(*(map(type, vector) for vector in items))
        features = _to_float32(items) if kinds <= {int, float} else None
        if features is not None:
            return features
    for place, vector in enumerate(items):
        if not isinstance(vector, list) or len(vector) != size:
            got = f"a list of {len(vector)}" if isinstance(vector, list) else describe(vector)
            faults.append(Fault(field=f"{field}[{place}]", message=f"expected a list of {size} numbers, got {got}"))
        else:
            faults.extend(_number_faults(vector, f"{field}[{place}]"))
        if len(faults) >= MAX_FAULTS:
            break
    return np.empty((0, size), np.float32)


def _number_faults(vector: Sequence[Any], field: str) -> list[Fault]:
    wrong = (
        (place, item)
        for place, item in enumerate(vector)
        if type(item) not in (int, float) or not -MAX_NUMBER <= item <= MAX_NUMBER
    )
    return [
        Fault(field=f"{field}[{place}]", message=f"expected a number from -1e12 to 1e12, got {describe(item)}")
        for place, item in itertools.islice(wrong, MAX_FAULTS)
    ]


def _to_float32(numbers: list[Any]) -> NDArray[np.float32] | None:
    """Numbers, or lists of them, as float32; None if one of them is beyond `MAX_NUMBER`."""
    try:
        with np.errstate(over="ignore"):
            array = np.array(numbers, np.float32)
    except OverflowError:
        return None
    return array if (np.abs(array) <= MAX_NUMBER).all() else None
