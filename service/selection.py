"""Selection: which layers, heads and steps a request is about. "all", slices and lists of indices, made absolute."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.problems import MAX_FAULTS, Fault, Invalid, TooLarge, raise_faults

MAX_ENTRIES = 65_536
# No more digits than a step can have: Python takes quadratic time to read a number.
SLICE = re.compile(r"^(-?[0-9]{1,9})?:(-?[0-9]{1,9})?(?::(-?[0-9]{1,9})?)?$")
INDICES = '"all", a slice like "2:5", or a list of at least one index'

Wanted = str | slice | NDArray[np.int64]
"""What a request says of an axis: "all", "last", a slice, or indices that may count from the end."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The same steps of several sequences: checked, but not laid out yet, so that they can be counted first."""

    wanted: Wanted
    lengths: Sequence[int]

    @property
    def count(self) -> int:
        """Number of steps over all sequences."""
        if isinstance(self.wanted, np.ndarray):
            return len(self.wanted) * len(self.lengths)
        return sum(len(_range_of(self.wanted, length)) for length in self.lengths)

    def per_sequence(self) -> list[NDArray[np.int64]]:
        """Absolute steps of each sequence."""
        return [expand(self.wanted, length) for length in self.lengths]


def parse_steps(value: Any, field: str, lengths: Sequence[int], also: str = "") -> Steps:
    """Check "last", "all", a slice or a list of indices that must have a step, or exist, in every sequence.

    Args:
        value: from a request.
        field: its name.
        lengths: of the sequences.
        also: other things that would have been taken, for the complaint.
    """
    # What the shortest sequence has, every one has: the list is checked once, not once per sequence.
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    what = f"steps of sequences[{shortest}]"
    wanted = _parse_wanted(value, field, lengths[shortest], what, also=f'"last", {also}', words=("all", "last"))
    if isinstance(wanted, slice):
        # A slice that the shortest has a part of may still be none of a longer one: its last step, say "3:-4".
        for index, length in enumerate(lengths):
            _check_slice(wanted, value, field, length, f"steps of sequences[{index}]")
    return Steps(wanted=wanted, lengths=lengths)


def parse_indices(value: Any, field: str, size: int, what: str) -> NDArray[np.int64]:
    """Absolute indices from "all", a slice or a list."""
    return expand(_parse_wanted(value, field, size, what), size)


def parse_pairs(value: Any, field: str, sizes: tuple[int, int], what: tuple[str, str]) -> NDArray[np.int64]:
    """Absolute [P, 2] from a list of pairs; of each side its size, and what it counts."""
    if not isinstance(value, list) or not value:
        raise Invalid.about(field, f"expected a list of at least one [{', '.join(what)}], got {describe(value)}")
    if len(value) > MAX_ENTRIES:
        raise TooLarge.about(field, f"expected at most {MAX_ENTRIES} pairs, got {len(value)}")
    ranges = " and ".join(f"{name} from {-size} to {size - 1}" for name, size in zip(what, sizes, strict=True))

    def is_right(pair: Any) -> bool:
        return (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(index) is int and -size <= index < size for index, size in zip(pair, sizes, strict=True))
        )

    raise_faults(
        [
            Fault(field=f"{field}[{place}]", message=f"expected [{', '.join(what)}], {ranges}, got {_show_pair(pair)}")
            for place, pair in _first_faults(value, is_right)
        ]
    )
    absolute: NDArray[np.int64] = np.array(value, np.int64) % np.array(sizes)
    return absolute


def parse_choice(fields: dict[str, Any], name: str, choices: Sequence[str], prefix: str) -> str:
    """One of several words; the first one unless given."""
    value = fields.get(name, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise Invalid.about(f"{prefix}{name}", f"expected one of {', '.join(choices)}, got {describe(value)}")
    return value


def parse_names(value: Any, field: str, choices: Sequence[str], also: str = "") -> tuple[str, ...]:
    """At least one of several words, each once, in the order given."""
    known = ", ".join(choices)
    if not isinstance(value, list) or not value:
        raise Invalid.about(field, f"expected {also}a list of at least one of {known}, got {describe(value)}")
    raise_faults(
        [
            Fault(field=f"{field}[{place}]", message=f"expected one of {known}, got {describe(name)}")
            for place, name in _first_faults(value, lambda name: isinstance(name, str) and name in choices)
        ]
    )
    return tuple(dict.fromkeys(value))


def parse_flag(fields: dict[str, Any], name: str, prefix: str) -> bool:
    """True or false; false unless given."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise Invalid.about(f"{prefix}{name}", f"expected true or false, got {describe(value)}")
    return value


def expand(wanted: Wanted, size: int) -> NDArray[np.int64]:
    """Absolute indices of what is wanted of `size`."""
    if isinstance(wanted, np.ndarray):
        return wanted % size
    places = _range_of(wanted, size)
    return np.arange(places.start, places.stop, places.step)


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


def _range_of(wanted: str | slice, size: int) -> range:
    if isinstance(wanted, slice):
        return range(size)[wanted]
    return range(0 if wanted == "all" else size - 1, size)


def _parse_wanted(
    value: Any, field: str, size: int, what: str, also: str = "", words: Sequence[str] = ("all",)
) -> Wanted:
    """A word, a slice, or a list of indices from -size to size - 1 that are not made absolute."""
    if isinstance(value, str):
        if value in words:
            return value
        found = SLICE.fullmatch(value)
        # A step of 0 is none.
        if found is not None and int(found[3] or 1):
            wanted = slice(*(None if part is None else int(part) for part in found.groups()))
            _check_slice(wanted, value, field, size, what)
            return wanted
    if not isinstance(value, list) or not value:
        raise Invalid.about(field, f"expected {also}{INDICES}, got {describe(value)}")
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


def _check_slice(wanted: slice, value: str, field: str, size: int, what: str) -> None:
    if not _range_of(wanted, size):
        raise Invalid.about(field, f"expected a slice with at least one of the {size} {what}, got {describe(value)}")


def _first_faults(items: Sequence[Any], is_right: Callable[[Any], bool]) -> list[tuple[int, Any]]:
    found = []
    for place, item in enumerate(items):
        if not is_right(item):
            found.append((place, item))
            if len(found) >= MAX_FAULTS:
                break
    return found


def _show_pair(pair: object) -> str:
    if isinstance(pair, list) and len(pair) == 2 and all(type(index) is int for index in pair):
        return f"[{pair[0]!r:.24}, {pair[1]!r:.24}]"
    return describe(pair)
