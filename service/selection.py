"""Selection: which layers, heads and steps a request is about. Lists of indices, checked and made absolute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.service.formats.coding import CODINGS
from attnserve.service.problems import MAX_FAULTS, Fault, Invalid, TooLarge, raise_faults

MAX_ENTRIES = 65_536
DIAGNOSTICS = ("entropy", "distance", "sink", "previous_token", "self", "received")
DEFAULT_DIAGNOSTICS = DIAGNOSTICS[:-1]
QUANTITIES = ("diagnostics", "weights")
FIELDS = ("layers", "heads", "queries", "quantity", "diagnostics", "dtype")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of the attention is wanted; all indices absolute and checked."""

    layers: list[int]
    heads: list[int]
    queries: list[NDArray[np.int64]]
    """Steps per sequence."""
    quantity: str
    diagnostics: tuple[str, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The same steps of several sequences: checked, but not laid out yet, so that they can be counted first."""

    wanted: str | NDArray[np.int64]
    """"last", "all", or indices that every sequence has."""
    lengths: Sequence[int]

    @property
    def count(self) -> int:
        """Number of steps over all sequences."""
        if isinstance(self.wanted, str):
            return sum(self.lengths) if self.wanted == "all" else len(self.lengths)
        return len(self.wanted) * len(self.lengths)

    def per_sequence(self) -> list[NDArray[np.int64]]:
        """Absolute steps of each sequence."""
        if isinstance(self.wanted, str):
            return [np.arange(0 if self.wanted == "all" else length - 1, length) for length in self.lengths]
        return [self.wanted % length for length in self.lengths]


def parse_selection(fields: dict[str, Any], manifest: Manifest, lengths: Sequence[int], prefix: str) -> Selection:
    """Check which layers, heads, queries and quantity are asked for.

    Args:
        fields: part of the request's JSON; names other than `FIELDS` are not looked at.
        manifest: of the model asked.
        lengths: of the request's sequences.
        prefix: put before the names of fields in complaints.
    """
    quantity = _parse_choice(fields, "quantity", QUANTITIES, prefix)
    names = fields.get("diagnostics", list(DEFAULT_DIAGNOSTICS))
    if not isinstance(names, list) or not names:
        expected = f"a list of at least one of {', '.join(DIAGNOSTICS)}"
        raise Invalid.about(f"{prefix}diagnostics", f"expected {expected}, got {describe(names)}")
    wrong = _first_faults(names, lambda name: isinstance(name, str) and name in DIAGNOSTICS)
    raise_faults(
        [
            Fault(
                field=f"{prefix}diagnostics[{place}]",
                message=f"expected one of {', '.join(DIAGNOSTICS)}, got {describe(name)}",
            )
            for place, name in wrong
        ]
    )
    queries = parse_steps(fields.get("queries", "all"), f"{prefix}queries", lengths)
    if queries.count > MAX_ENTRIES:
        message = f"sequences x queries may be at most {MAX_ENTRIES}, got {queries.count}; ask for fewer at a time"
        raise TooLarge.about(f"{prefix}queries", message)
    return Selection(
        layers=_parse_indices(fields.get("layers", "all"), f"{prefix}layers", len(manifest.layers), "layers").tolist(),
        heads=_parse_indices(fields.get("heads", "all"), f"{prefix}heads", manifest.num_heads, "heads").tolist(),
        queries=queries.per_sequence(),
        quantity=quantity,
        diagnostics=tuple(dict.fromkeys(names)),
        dtype=_parse_choice(fields, "dtype", CODINGS, prefix),
    )


def parse_steps(value: Any, field: str, lengths: Sequence[int]) -> Steps:
    """Check "last", "all" or a list of indices that must exist in every sequence."""
    if isinstance(value, str) and value in ("last", "all"):
        return Steps(wanted=value, lengths=lengths)
    # What the shortest sequence has, every one has: the list is checked once, not once per sequence.
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    what = f"steps of sequences[{shortest}]"
    return Steps(wanted=_parse_list(value, field, lengths[shortest], what, also='"last", '), lengths=lengths)


def describe(value: object) -> str:
    """Say what a JSON value is, echoing no more than a few characters of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value!r:.24}"
    if isinstance(value, str):
        return f"the string {value[:24]!r}" + ("..." if len(value) > 24 else "")
    if value == []:
        return "an empty list"
    return "a list" if isinstance(value, list) else "an object"


def _parse_indices(value: Any, field: str, size: int, what: str) -> NDArray[np.int64]:
    """Absolute indices from "all" or a list."""
    return np.arange(size) if value == "all" else _parse_list(value, field, size, what) % size


def _parse_list(value: Any, field: str, size: int, what: str, also: str = "") -> NDArray[np.int64]:
    """Indices from -size to size - 1; negative ones, which count from the end, are left as they are."""
    if not isinstance(value, list) or not value:
        raise Invalid.about(field, f'expected {also}"all" or a list of at least one index, got {describe(value)}')
    if len(value) > MAX_ENTRIES:
        raise TooLarge.about(field, f"expected at most {MAX_ENTRIES} indices, got {len(value)}")
    raise_faults(
        [
            Fault(
                field=f"{field}[{place}]",
                message=f"expected an integer from {-size} to {size - 1} ({size} {what}), got {describe(item)}",
            )
            for place, item in _first_faults(value, lambda item: type(item) is int and -size <= item < size)
        ]
    )
    return np.array(value, np.int64)


def _first_faults(items: Sequence[Any], is_right: Callable[[Any], bool]) -> list[tuple[int, Any]]:
    found = []
    for place, item in enumerate(items):
        if not is_right(item):
            found.append((place, item))
            if len(found) >= MAX_FAULTS:
                break
    return found


def _parse_choice(fields: dict[str, Any], name: str, choices: Sequence[str], prefix: str) -> str:
    value = fields.get(name, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise Invalid.about(f"{prefix}{name}", f"expected one of {', '.join(choices)}, got {describe(value)}")
    return value
