"""Questions about attention, as keywords: the fields of docs/attention-api.md and what each may be."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict
from urllib.parse import urlencode

import numpy as np

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
    """Fields as the query of a URL, with its question mark if there are any; raises as `to_json`."""
    named = {name: _write(to_json(name, value)) for name, value in fields.items() if value is not None}
    return f"?{urlencode(named)}" if named else ""


def to_json(name: str, value: Any) -> Any:
    """A field as JSON has it: arrays, tensors and ranges as lists, looked into.

    Raises:
        ValueError: JSON has no such thing; names the field.
    """
    # First, for there may be millions of ids.
    if value is None or type(value) in (int, str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        return value.tolist()
    # Other arrays, numbers of numpy, tensors.
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: to_json(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_json(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    if isinstance(value, str | int | float):
        return value
    raise ValueError(f"{name}: expected numbers, texts, lists or arrays, got {type(value).__name__}")


def _write(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) in (int, str) for item in value):
        return ",".join(map(str, value))
    return json.dumps(value)
