"""Configuration: where the settings of a service come from: its flags, the environment, a file."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import PydanticBaseSettingsSource, SettingsConfigDict

from attnserve.flags import ENV_PREFIX, add_flags, explain, flag_of, read_flags
from attnserve.jobs import hide_password
from attnserve.service.document import read_document
from attnserve.service.settings import Settings

CONFIG, CONFIG_VARIABLE = "--config", f"{ENV_PREFIX}CONFIG"
# What is said of their values is chosen by whoever reads them: nothing that is a secret, or was to be one, is shown.
SECRET = frozenset({"keys", "database_url", "otlp_endpoint"})
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
    add_flags(parser, Settings)


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
    settings = read_flags(parsed, Settings, secret=SECRET)
    path = getattr(parsed, "config", None) or os.environ.get(CONFIG_VARIABLE)
    if not path:
        return settings
    from_file = _read_file(Path(path))
    unset = from_file.model_fields_set - settings.model_fields_set
    return settings.model_copy(update={name: getattr(from_file, name) for name in unset})


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Every setting by name, for the log. Of keys, only who has them; of the database, only where it is."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    secrets = {"keys": [key.name for key in settings.keys], "database_url": hide_password(settings.database_url)}
    return {**values, **secrets}


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
            near = difflib.get_close_matches(str(name), Settings.model_fields, 1, 0.6)
            hint = f", such as {near[0]}" if near else ""
            raise ValueError(f"{path}: {str(name)[:64]}: expected the name of a setting{hint}")
    try:
        return _FileSettings(**document)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise ValueError(f"{path}: {name}: {explain(error, is_secret=name in SECRET)}") from None
