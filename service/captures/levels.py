"""Levels: what captures of a model may show. Queries and keys tell of a model's weights, and maps far less."""

import json
from collections.abc import Mapping

OFF, MAPS, QK = LEVELS = ("off", "maps", "qk")
"""No captures; everything but queries and keys; these too."""
ANY = "*"


def parse_levels(given: object) -> dict[str, str]:
    """Levels by model, from a mapping, its JSON, or one word for every model.

    Raises:
        ValueError: says what was expected.
    """
    expected = f"one of {', '.join(LEVELS)}, or such words by model as JSON"
    if given in ("", None):
        return {}
    if isinstance(given, str) and given in LEVELS:
        return {ANY: given}
    try:
        document = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        raise ValueError(f"expected {expected}, got {str(given)[:40]!r}") from None
    if not isinstance(document, Mapping):
        raise ValueError(f"expected {expected}, got {type(document).__name__}")
    for name, level in document.items():
        if level not in LEVELS:
            raise ValueError(f"{str(name)[:40]}: expected one of {', '.join(LEVELS)}, got {str(level)[:40]!r}")
    return {str(name): str(level) for name, level in document.items()}


def level_of(levels: Mapping[str, str], model: str) -> str:
    """What captures of a model may show."""
    return levels.get(model, levels.get(ANY, QK))
