"""The fields of a model and of its export, a few values of each, and what docs/checkpoint.md says of them together.

A *choice* gives every field a value. The layers are fields too, `layers.1.window`, and a layer whose variant is None is
not there. `labels` says whether there are any. Nothing here asks the package what is legal: the tests ask whether it
agrees.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Choice = dict[str, Any]

NUM_LAYERS = 3
ABSENT = {"scale": None, "epsilon": 0.0, "window": 0, "softcap": 0.0, "scope": None, "scaling": None}
FIELDS: Mapping[str, tuple[Any, ...]] = {
    "vocabulary_size": (None, 5, 23),
    "num_features": (None, 1, 6),
    "task": ("next_token", "classify_token", "classify_sequence"),
    "num_classes": (None, 1, 4),
    "pooling": (None, "first", "last", "mean"),
    "causal": (True, False),
    "positions": ("orthogonal", "learned", "sinusoidal", "rotary", "none"),
    "rotary_base": (10_000.0, 37.0),
    "norm": ("pre", "post"),
    "max_length": (40, 33),
    "width": (12, 15, 24),
    "num_heads": (1, 2, 3, 4),
    "num_key_heads": (None, 1, 2),
    "head_size": (None, 1, 5, 6),
    "mlp_ratio": (2.0, 1.5, 1 / 3),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "bias": (True, False),
    "tied_embeddings": (False, True),
    "norm_epsilon": (1e-5, 0.01),
    "labels": (False, True),
    **{
        f"layers.{layer}.{field}": values
        for layer in range(NUM_LAYERS)
        for field, values in {
            "variant": (*(() if layer == 0 else (None,)), "dot_product", "expressive", "elliptical"),
            "scale": (None, 0.7),
            "epsilon": (0.0, 0.05),
            "window": (0, 1, 6),
            "softcap": (0.0, 1.5),
            "scope": (None, "prefix", "sequence", "sequence-leaky"),
            "scaling": (None, "max", "mean"),
        }.items()
    },
    "precision": ("float32", "float16", "int8"),
    "portable": (False, True),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What some fields may not be together."""

    named: str | None
    """The field that a refusal names; None of what no file could say."""
    fields: tuple[str, ...]
    holds: Callable[..., bool]
    """Of their values, in this order."""

    def allows(self, choice: Choice) -> bool:
        return self.holds(*(choice[field] for field in self.fields))


def rule(named: str | None, fields: str, holds: Callable[..., bool]) -> Rule:
    return Rule(named=named, fields=tuple(fields.split()), holds=holds)


def layer_rules(layer: int) -> list[Rule]:
    here, there = f"layers.{layer}", f"attention[{layer}]"
    return [
        *(
            rule(None, f"{here}.variant {here}.{field}", lambda variant, value, none=none: variant or value == none)
            for field, none in ABSENT.items()
        ),
        rule(f"{there}.epsilon", f"{here}.variant {here}.epsilon", lambda v, epsilon: not epsilon or v == "expressive"),
        rule(f"{there}.scope", f"{here}.variant {here}.scope", lambda v, scope: (v == "elliptical") == bool(scope)),
        rule(f"{there}.scaling", f"{here}.variant {here}.scaling", lambda v, it: (v == "elliptical") == bool(it)),
        rule(f"{there}.scope", f"causal {here}.scope", lambda causal, it: not it or causal == (it != "sequence")),
    ]


RULES = [
    rule("vocabulary_size", "vocabulary_size num_features", lambda ids, features: (ids is None) != (features is None)),
    rule("task", "task vocabulary_size num_features", lambda task, ids, f: task != "next_token" or bool(ids) or not f),
    rule("num_classes", "task num_classes", lambda task, classes: (task == "next_token") == (classes is None)),
    rule("pooling", "task pooling", lambda task, pooling: (task == "classify_sequence") == (pooling is not None)),
    rule("pooling", "causal pooling", lambda causal, pooling: not (causal and pooling == "first")),
    rule("tied_embeddings", "task tied_embeddings", lambda task, tied: task == "next_token" or not tied),
    rule("num_heads", "width num_heads head_size", lambda width, heads, size: bool(size) or width % heads == 0),
    rule("num_key_heads", "num_heads num_key_heads", lambda heads, keys: heads % (keys or heads) == 0),
    rule("positions", "positions head_size", lambda positions, size: positions != "rotary" or (size or 0) % 2 == 0),
    rule(
        "positions",
        "positions head_size width num_heads",
        lambda positions, size, width, heads: positions != "rotary" or bool(size) or width // heads % 2 == 0,
    ),
    rule("mlp_ratio", "width mlp_ratio", lambda width, ratio: (width * ratio).is_integer()),
    rule("attention[0].variant", "layers.0.variant", lambda variant: variant != "elliptical"),
    *(one for layer in range(NUM_LAYERS) for one in layer_rules(layer)),
    *(
        rule(None, f"layers.{layer}.variant layers.{layer + 1}.variant", lambda one, after: bool(one) or after is None)
        for layer in range(1, NUM_LAYERS - 1)
    ),
]


def document_of(choice: Choice) -> dict[str, Any]:
    """`config.json` of a choice."""
    own = {field: value for field, value in choice.items() if "." not in field}
    del own["precision"], own["portable"]
    # Written or left out, null means the same.
    document = {field: value for field, value in own.items() if value is not None or field == "pooling"}
    num_names = choice["vocabulary_size"] if choice["num_classes"] is None else choice["num_classes"]
    document["labels"] = [f"é{index}" for index in range(num_names or 1)] if choice["labels"] else None
    document["attention"] = [
        {field: choice[f"layers.{layer}.{field}"] for field in ("variant", *ABSENT)}
        for layer in range(NUM_LAYERS)
        if choice[f"layers.{layer}.variant"] is not None
    ]
    return document
