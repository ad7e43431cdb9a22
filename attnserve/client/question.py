"""Questions about attention, as keywords: the fields of docs/attention-api.md and what each may be."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict
from urllib.parse import urlencode

Quantity = Literal["diagnostics", "weights", "signed", "scores", "weighted", "received", "rollout", "qk", "metric"]
Indices = str | Sequence[int]
"""`"all"`, a slice such as `"-2:"`, or a list."""
Steps = str | Sequence[int] | Mapping[str, Any]
"""The same, `"last"`, `{"token": "cat"}` or `{"span": [4, 11]}`."""
Pairs = Sequence[tuple[int, int]]
"""Layers and heads."""


class View(TypedDict, total=False):
    """What can be asked of a forward pass that is over."""

    layers: Indices
    heads: Indices
    pairs: Pairs
    queries: Steps
    keys: Steps
    special_tokens: Literal["keep", "drop", "drop_renormalise"]
    quantity: Quantity
    diagnostics: str | Sequence[str]
    exclude_bos: bool
    exclude_current_token: bool
    reduce: Mapping[str, str]
    top_keys: int
    min_weight: float
    dtype: Literal["float32", "float16", "uint8_sqrt"]


class Question(View, total=False):
    """What can be asked together with a prediction."""

    compare: Mapping[str, Any]
    ablate: Pairs


def to_parameters(fields: Mapping[str, Any]) -> str:
    """Fields as the query of a URL, with its question mark if there are any."""
    named = {name: _write(value) for name, value in fields.items() if value is not None}
    return f"?{urlencode(named)}" if named else ""


def _write(value: Any) -> str:
    if isinstance(value, str):
        return value
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, Sequence) and all(type(item) in (int, str) for item in items):
        return ",".join(map(str, items))
    return json.dumps(items)
