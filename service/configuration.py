"""Configuration: where the settings of a service come from: its flags, the environment, a file."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import PydanticBaseSettingsSource, SettingsConfigDict

from attnserve.service.document import read_document
from attnserve.service.settings import ENV_PREFIX, Settings

CONFIG, CONFIG_VARIABLE = "--config", f"{ENV_PREFIX}CONFIG"
# What is said of their values is chosen by whoever reads them: nothing of a secret is shown.
SECRET = frozenset({"keys"})
YES_OR_NO = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n"})


class _FileSettings(Settings):
    """What a file says, judged by itself. Strictly: YAML has types, and `yes` is no number of threads."""

    model_config = SettingsConfigDict(strict=True)

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        """No environment."""
        return (sources["init_settings"],)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag per setting; one that is not given leaves the environment, the file or the default in force."""
    parser.add_argument(
        CONFIG,
        metavar="FILE",
        help=f"settings in YAML, by the names of these flags: `max_queue: 100` ({CONFIG_VARIABLE}). "
        "Flags win over the environment, the environment over the file",
    )
    for name, field in Settings.model_fields.items():
        parser.add_argument(
            flag_of(name),
            default=argparse.SUPPRESS,
            metavar=name.upper(),
            help=f"{field.description} (default: {default_of(name)})".replace("%", "%%"),
        )


def spell_out(arguments: Sequence[str]) -> list[str]:
    """Give bare flags their value: `--allow-anonymous` is `--allow-anonymous true`.

    argparse would take whatever comes next for it, even the repository.
    """
    flags = {flag_of(name) for name, field in Settings.model_fields.items() if field.annotation is bool}
    spelled: list[str] = []
    for index, argument in enumerate(arguments):
        spelled.append(argument)
        if argument in flags and "".join(arguments[index + 1 : index + 2]).lower() not in YES_OR_NO:
            spelled.append("true")
    return spelled


def read_settings(parsed: argparse.Namespace | None = None) -> Settings:
    """Settings from flags, then environment, then the file that either names, then defaults.

    Raises:
        ValueError: names the setting, or the file and the setting; what was expected and what came.
    """
    given: dict[str, Any] = {} if parsed is None else vars(parsed)
    flags = {name: given[name] for name in Settings.model_fields if name in given}
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]).lower().removeprefix(ENV_PREFIX.lower())
        raise ValueError(f"{flag_of(name)} ({ENV_PREFIX}{name.upper()}): {_explain(error, name)}") from None
    path = given.get("config") or os.environ.get(CONFIG_VARIABLE)
    if not path:
        return settings
    from_file = _read_file(Path(path))
    unset = from_file.model_fields_set - settings.model_fields_set
    return settings.model_copy(update={name: getattr(from_file, name) for name in unset})


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Every setting by name, for the log. Of keys, only who has them."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {**values, "keys": [key.name for key in settings.keys]}


def flag_of(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def default_of(name: str) -> str:
    """The default of a setting in words."""
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return str(default).lower()
    return "none" if default in ("", (), {}) else str(default)


def settings_table() -> str:
    """The settings as a markdown table, for docs/settings.md."""
    properties = Settings.model_json_schema()["properties"]
    lines = ["| flag | environment | default | accepts | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        cells = (
            f"`{flag_of(name)}`",
            f"`{ENV_PREFIX}{name.upper()}`",
            f"`{default_of(name)}`",
            _describe_bounds(properties[name]),
            field.description,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _read_file(path: Path) -> _FileSettings:
    try:
        document = read_document(path.read_bytes().decode())
    except OSError as error:
        raise ValueError(f"{CONFIG} ({CONFIG_VARIABLE}): expected a file, got {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8, got something else") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected settings as `name: value`, got something else")
    for name in document:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(str(name), Settings.model_fields, 1, 0.5)
            hint = f", such as {near[0]}" if near else ""
            raise ValueError(f"{path}: {str(name)[:64]}: expected the name of a setting{hint}")
    try:
        return _FileSettings(**document)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise ValueError(f"{path}: {name}: {_explain(error, name)}") from None


def _explain(error: ValidationError, name: str) -> str:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause)
    return first["msg"].lower() + ("" if name in SECRET else f", got {first['input']!r}")


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
