"""Comparison: what a request is compared with: another model or version, or other sequences of the same lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnserve.bundle import is_version
from attnserve.service.problems import Invalid
from attnserve.service.selection import describe
from attnserve.service.sequences import Input, Reader, parse_sequences

FIELDS = ("model", "version", "sequences")


# Without a repr: inputs are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison:
    """The other side; what is None is the same on both."""

    model: str | None = None
    version: int | None = None
    """None is the one that is served."""
    inputs: list[Input] | None = None
    """As the model asked reads them."""
    field: str = "compare"
    """Where it stands in the request."""

    @property
    def model_field(self) -> str:
        """What of it names the model on the other side."""
        return f"{self.field}.{'version' if self.model is None else 'model'}"


def parse_comparison(value: Any, reader: Reader, inputs: Sequence[Input], field: str) -> Comparison:
    """Check what is to be compared with; whether there is such a model is found out later.

    Args:
        value: from a request.
        reader: of the model asked.
        inputs: of the request.
        field: its name.
    """
    expected = 'an object with "model", "version" or "sequences"'
    if not isinstance(value, dict) or not value:
        raise Invalid.about(field, f"expected {expected}, got {describe(value)}")
    for name in value:
        if name not in FIELDS:
            raise Invalid.about(f"{field}.{name[:64]}", f"unknown field; expected {expected}")
    model = value.get("model")
    if "model" in value and not isinstance(model, str):
        raise Invalid.about(f"{field}.model", f"expected the name of a model, got {describe(model)}")
    version = value.get("version")
    if "version" in value and (type(version) is not int or not is_version(str(version))):
        raise Invalid.about(f"{field}.version", f"expected a positive integer, got {describe(version)}")
    if "sequences" not in value:
        return Comparison(model=model, version=version, field=field)
    others = parse_sequences(value["sequences"], reader, f"{field}.sequences")
    check_lengths(inputs, others, f"{field}.sequences")
    return Comparison(model=model, version=version, inputs=others, field=field)


def check_lengths(inputs: Sequence[Input], others: Sequence[Input], field: str) -> None:
    """Refuse sides that differ in sequences or steps: rows could not be put beside rows.

    Raises:
        Invalid: names the sequence.
    """
    if len(others) != len(inputs):
        raise Invalid.about(field, f"expected {len(inputs)} sequences, as on the other side, got {len(others)}")
    for index, (read, other) in enumerate(zip(inputs, others, strict=True)):
        if len(other.values) != len(read.values):
            message = f"expected {len(read.values)} steps, as sequences[{index}] has, got {len(other.values)}"
            raise Invalid.about(f"{field}[{index}]" if field.endswith("sequences") else field, message)
