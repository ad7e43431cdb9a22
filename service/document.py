"""Documents: files that operators write, in YAML or JSON. What is wrong with one is said without quoting it."""

import contextlib
from collections.abc import Hashable
from typing import Any

import orjson
import yaml

MERGE = "tag:yaml.org,2002:merge"
TWICE = "expected each name once, got one again"


# The types of yaml are not among what this project installs.
class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data only, and no name twice: YAML would take the last one, and nobody notice the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose names differ."""
        seen = set()
        for name_node, _ in node.value:
            if name_node.tag == MERGE:
                continue
            name = self.construct_object(name_node, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, TWICE, name_node.start_mark)
            seen.add(name)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_document(text: str) -> Any:
    """What a text in YAML or JSON says; None if it says nothing.

    Raises:
        ValueError: neither of the two; says where, and never what stands there, which may be a secret.
    """
    place = ""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f" at line {mark.line + 1} column {mark.column + 1}"
        if error.problem == TWICE:
            raise ValueError(TWICE + place) from None
    # Characters that no text has; a name that is a list; a date that is none.
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        pass
    # JSON is YAML, unless it is indented with tabs.
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(text)
    raise ValueError(f"expected YAML or JSON, got something else{place}")
