"""Settings by flag and environment variable, declared once, in a class: default, bounds, help and docs page too."""

import argparse
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

ENV_PREFIX = "ATTNSERVE_"

Settings = TypeVar("Settings", bound=BaseSettings)


def add_flags(parser: argparse.ArgumentParser, kind: type[BaseSettings]) -> None:
    """Add a flag per setting; one that is not given leaves the environment or the default in force."""
    for name, field in kind.model_fields.items():
        parser.add_argument(
            flag_of(name),
            default=argparse.SUPPRESS,
            metavar=name.upper(),
            help=f"{field.description} (default: {default_of(kind, name)})".replace("%", "%%"),
        )


def read_flags(parsed: argparse.Namespace | None, kind: type[Settings], *, secret: Collection[str] = ()) -> Settings:
    """Settings from flags, then environment, then defaults.

    Args:
        parsed: what `add_flags` added; None is no flag.
        kind: the class of the settings.
        secret: names of those whose values no message may show.

    Raises:
        ValueError: names the setting; what was expected and what came.
    """
    given: dict[str, Any] = {} if parsed is None else vars(parsed)
    try:
        return kind(**{name: given[name] for name in kind.model_fields if name in given})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]).lower().removeprefix(ENV_PREFIX.lower())
        raise ValueError(f"{spell(name)}: {explain(error, is_secret=name in secret)}") from None


def explain(error: ValidationError, *, is_secret: bool) -> str:
    """What was expected and, unless it is a secret, what came."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause)
    return first["msg"].lower() + ("" if is_secret else f", got {first['input']!r}")


def flag_of(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def spell(name: str) -> str:
    """The flag and the environment variable of a setting, for messages."""
    return f"{flag_of(name)} ({ENV_PREFIX}{name.upper()})"


def default_of(kind: type[BaseSettings], name: str) -> str:
    """The default of a setting in words."""
    default = kind.model_fields[name].default
    if isinstance(default, bool):
        return str(default).lower()
    if default in ("", (), {}):
        return "none"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def settings_table(kind: type[BaseSettings]) -> str:
    """The settings as a markdown table."""
    properties = kind.model_json_schema()["properties"]
    lines = ["| flag | environment | default | accepts | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in kind.model_fields.items():
        cells = (
            f"`{flag_of(name)}`",
            f"`{ENV_PREFIX}{name.upper()}`",
            f"`{default_of(kind, name)}`",
            _describe_bounds(properties[name]),
            field.description,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _describe_bounds(schema: dict[str, Any]) -> str:
    if "accepts" in schema:
        return str(schema["accepts"])
    if schema["type"] == "boolean":
        return "`true`, `false`"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
    bounds = [f"{words[key]} {schema[key]}" for key in words if key in schema]
    return " ".join([str(schema["type"]), *bounds])
