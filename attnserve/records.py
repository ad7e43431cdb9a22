"""Frozen dataclasses to and from JSON: strict, and every complaint names the field, what was expected and what came.

Used by the manifest and by checkpoint configs, so both refuse a bad file in the same words.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


class RecordError(ValueError):
    """A JSON document does not describe the record it should; the message names the field."""


def to_json(record: Any) -> Any:
    """Turn a dataclass (nested in any way in tuples and mappings) into plain JSON values."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: to_json(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {key: to_json(value) for key, value in record.items()}
    if isinstance(record, tuple | list):
        return [to_json(value) for value in record]
    return record


def from_json(kind: type[Record], document: Any, where: str = "") -> Record:
    """Build dataclass `kind` from parsed JSON.

    Raises:
        RecordError: a field is unknown, missing or of another type.
    """
    return typing.cast(Record, _convert(kind, document, where))


def check_types(record: Any) -> None:
    """Hold a dataclass made in Python to what `from_json` would accept, so that it can be written and read again.

    Raises:
        RecordError: a field is of another type; the message names it.
    """
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        _convert(hints[field.name], to_json(getattr(record, field.name)), field.name)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where or 'document'}: expected a list, got {describe(value)}")
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise RecordError(f"{where or 'document'}: expected an object, got {describe(value)}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_fields(kind, value, where)
    # bool is an int in Python, and JSON writes 1 where a float is meant.
    matches = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise RecordError(f"{where or 'document'}: expected a float, got an integer too large for one") from None
    if not matches:
        raise RecordError(f"{where or 'document'}: expected {kind.__name__}, got {describe(value)}")
    return value


def _convert_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{where or 'document'}: expected an object, got {describe(value)}")
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            # Control characters, which a log would show, and halves of pairs, which no file takes.
            shown = name if name.isprintable() else ascii(name)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise RecordError(f"{prefix}{shown}: unknown field; expected one of {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise RecordError(f"{prefix}{name}: missing")
    values = {name: _convert(hints[name], item, f"{prefix}{name}") for name, item in value.items()}
    try:
        return kind(**values)
    except ValueError as error:
        # A record's own checks know the field's name, not where the record stands.
        raise RecordError(f"{prefix}{error}") from None


def describe(value: Any) -> str:
    """Say what a value is without echoing more than 40 characters of it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def read_text(path: Path, limit_bytes: int) -> str:
    """Read a small UTF-8 file, refusing one larger than `limit_bytes` before reading it.

    Raises:
        RecordError: missing, too large or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise RecordError(f"{path}: expected at most {limit_bytes} bytes, got {size}")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read as UTF-8 text: {error}") from None
