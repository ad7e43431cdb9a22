"""Kinds of models that the page allows, for save_random_checkpoint: layers, and the other fields."""

from typing import Any

import pytest

MAX_LENGTH = 40

DOT: dict[str, Any] = {"variant": "dot_product"}
EXPRESSIVE: dict[str, Any] = {"variant": "expressive"}
MAX = {"variant": "elliptical", "scope": "prefix", "scaling": "max"}
MEAN = {"variant": "elliptical", "scope": "prefix", "scaling": "mean"}
LEAKY_MAX = {"variant": "elliptical", "scope": "sequence-leaky", "scaling": "max"}
LEAKY_MEAN = {"variant": "elliptical", "scope": "sequence-leaky", "scaling": "mean"}
SEQUENCE_MAX = {"variant": "elliptical", "scope": "sequence", "scaling": "max"}
SEQUENCE_MEAN = {"variant": "elliptical", "scope": "sequence", "scaling": "mean"}

# Inputs, heads, norms and outputs: each of them, and with each other. Both ways unless `causal`.
FEATURES: dict[str, Any] = {"num_features": 7}
OF_SEQUENCE: dict[str, Any] = {"task": "classify_sequence", "num_classes": 4}
OF_TOKEN: dict[str, Any] = {"task": "classify_token", "num_classes": 5}
GROUPED: dict[str, Any] = {"num_heads": 6, "num_key_heads": 2}
POST: dict[str, Any] = {"norm": "post"}
TIED: dict[str, Any] = {"tied_embeddings": True}
Kind = tuple[list[dict[str, Any]], dict[str, Any]]

UNLESS_CAUSAL: dict[str, Kind] = {
    "grouped, elliptical": ([DOT, SEQUENCE_MAX, SEQUENCE_MEAN], {**GROUPED}),
    "grouped, one key head, prefix": (
        [EXPRESSIVE, MAX, MEAN],
        {"causal": True, "num_key_heads": 1, "positions": "none"},
    ),
    "grouped, leaky, rotary": ([DOT, LEAKY_MEAN], {"causal": True, **GROUPED, "positions": "rotary", "bias": True}),
    "a head size of its own": ([DOT, SEQUENCE_MAX, EXPRESSIVE], {"head_size": 5, "num_heads": 4, "width": 14}),
    "head size, grouped, biases": (
        [DOT, {**MEAN, "window": 6}],
        {"causal": True, "head_size": 5, **GROUPED, "bias": True},
    ),
    "head size, rotary": ([EXPRESSIVE, SEQUENCE_MEAN], {"head_size": 6, "num_heads": 5, "positions": "rotary"}),
    "head size, rotary, grouped": (
        [DOT, {**MAX, "softcap": 2.0}],
        {"causal": True, "head_size": 10, **GROUPED, "width": 9, "mlp_ratio": 3, "positions": "rotary", "bias": True},
    ),
    "post": ([DOT, SEQUENCE_MAX, EXPRESSIVE], {**POST}),
    "post, biases, rotary": ([EXPRESSIVE, MEAN, DOT], {"causal": True, **POST, "bias": True, "positions": "rotary"}),
    "post, tied, grouped": ([DOT, MEAN], {"causal": True, **POST, **TIED, **GROUPED, "positions": "learned"}),
    "tied": ([DOT, MAX], {"causal": True, **TIED}),
    "tied, biases": ([DOT, EXPRESSIVE], {"causal": True, **TIED, "bias": True, "positions": "sinusoidal"}),
    "classes of tokens": ([DOT, SEQUENCE_MEAN], {**OF_TOKEN, "bias": True}),
    "classes of tokens, forward": ([DOT, MAX], {"causal": True, **OF_TOKEN, **POST}),
    "classes of vectors": ([EXPRESSIVE, SEQUENCE_MAX], {**OF_TOKEN, **FEATURES, "positions": "sinusoidal"}),
    "classes of vectors, forward": (
        [DOT, LEAKY_MAX],
        {"causal": True, **OF_TOKEN, **FEATURES, **GROUPED, "bias": True},
    ),
    "first token": ([DOT, SEQUENCE_MEAN], {**OF_SEQUENCE, "pooling": "first", "positions": "rotary"}),
    "last token": ([DOT, MEAN], {"causal": True, **OF_SEQUENCE, "pooling": "last", "bias": True}),
    "mean of tokens": ([DOT, SEQUENCE_MAX], {**OF_SEQUENCE, "pooling": "mean", "positions": "sinusoidal", **POST}),
    "first, of vectors": ([DOT, SEQUENCE_MAX, SEQUENCE_MEAN], {**OF_SEQUENCE, **FEATURES, "pooling": "first"}),
    "first, of vectors, window": (
        [{**EXPRESSIVE, "window": 4}, {**SEQUENCE_MEAN, "window": 9, "softcap": 3.0}],
        {**OF_SEQUENCE, **FEATURES, "pooling": "first", **POST, "bias": True, **GROUPED, "head_size": 5},
    ),
    "first, of vectors, rotary": (
        [DOT, SEQUENCE_MAX, EXPRESSIVE],
        {**OF_SEQUENCE, **FEATURES, "pooling": "first", "positions": "rotary", "head_size": 4, "bias": True},
    ),
    "first, of vectors, learned": ([DOT], {**OF_SEQUENCE, **FEATURES, "pooling": "first", "positions": "learned"}),
    "last, of vectors": ([EXPRESSIVE, MAX], {"causal": True, **OF_SEQUENCE, **FEATURES, "pooling": "last", **POST}),
    "mean of vectors": ([DOT, SEQUENCE_MEAN], {**OF_SEQUENCE, **FEATURES, "pooling": "mean", "bias": True}),
    "mean of numbers, forward": (
        [DOT, LEAKY_MEAN],
        {"causal": True, **OF_SEQUENCE, "num_features": 1, "pooling": "mean", "num_classes": 1, "positions": "none"},
    ),
}

KINDS: dict[str, Kind] = {
    name: (layers, {"causal": False, **fields}) for name, (layers, fields) in UNLESS_CAUSAL.items()
}
EVERY_KIND: list[Any] = [pytest.param(*kind, id=name) for name, kind in KINDS.items()]
