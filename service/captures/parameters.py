"""Parameters: the query of a URL as the fields of a question, and the parts of its path as indices."""

import re
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Request

from attnserve.service.problems import MAX_FAULTS, Fault, Invalid, raise_faults

# No more digits than an index can have: Python takes quadratic time to read a number.
INTEGER = re.compile(r"-?[0-9]{1,9}")
INTEGERS = re.compile(r"-?[0-9]{1,9}(,-?[0-9]{1,9})*")
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,18})?(e-[0-9]{1,2})?")


def parse_query(request: Request, known: Sequence[str], numbers: Sequence[str] = ()) -> dict[str, Any]:
    """The query of a URL, as JSON has it: `layers=0,-1` is a list, `layers=2:5` a text, `keys={"token":"a"}` an object.

    Args:
        request: its URL.
        known: names that there may be.
        numbers: those whose value is one number, not a list.

    Raises:
        Invalid: another name, or one that is there twice.
    """
    fields: dict[str, Any] = {}
    faults = []
    for name, text in request.query_params.multi_items():
        if name not in known:
            expected = ", ".join(known)
            faults.append(Fault(field=name[:64], message=f"unknown parameter; expected one of {expected}"))
        elif name in fields:
            faults.append(Fault(field=name, message="expected once, got it again"))
        else:
            fields[name] = _parse_number(text) if name in numbers else _parse_value(text)
    raise_faults(faults[:MAX_FAULTS])
    return fields


def parse_index(text: str, field: str, size: int, what: str, *, is_absolute: bool = False) -> int:
    """An index in a path; a negative one counts from the end, unless it must be absolute.

    Raises:
        Invalid: says how many there are.
    """
    lowest = 0 if is_absolute else -size
    if not INTEGER.fullmatch(text) or not lowest <= int(text) < size:
        raise Invalid.about(
            field, f"expected an integer from {lowest} to {size - 1} ({size} {what}), got {text[:24]!r}"
        )
    return int(text) % size


def _parse_value(text: str) -> Any:
    if INTEGERS.fullmatch(text):
        return [int(part) for part in text.split(",")]
    if text.startswith(("{", "[")):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return {"true": True, "false": False}.get(text, text)


def _parse_number(text: str) -> Any:
    if not NUMBER.fullmatch(text):
        return text
    return int(text) if text.isdecimal() else float(text)
