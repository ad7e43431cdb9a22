"""config.json and the table of tensors, as docs/checkpoint.md has them: what is allowed, the defaults, the shapes.

Written from the page alone, like numpy_transformer.py, of which it is the first half.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = object()
MOST = 2**24
MOST_BYTES = 16 * 2**20

Allowed = Callable[[Any], bool]


def integer(lowest: int, highest: int) -> Allowed:
    return lambda value: type(value) is int and lowest <= value <= highest


def number(within: Callable[[float], bool]) -> Allowed:
    def allowed(value: Any) -> bool:
        try:
            return type(value) in (int, float) and math.isfinite(value) and within(float(value))
        except OverflowError:
            return False

    return allowed


def one_of(*choices: str) -> Allowed:
    return lambda value: isinstance(value, str) and value in choices


def null_or(allowed: Allowed) -> Allowed:
    return lambda value: value is None or allowed(value)


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def objects(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 1024 and all(isinstance(entry, dict) for entry in value)


def distinct_names(value: Any) -> bool:
    return isinstance(value, list) and all(encodable(name) for name in value) and len(set(value)) == len(value)


def encodable(name: Any) -> bool:
    try:
        return isinstance(name, str) and name.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


positive = number(lambda value: value > 0)
positive_float32 = number(lambda value: 2**-126 <= value < 2**128)
none_or_float32 = number(lambda value: value == 0 or 2**-126 <= value < 2**128)

# Name: default, what is allowed.
Fields = dict[str, tuple[Any, Allowed]]

CONFIG: Fields = {
    "vocabulary_size": (None, null_or(integer(1, MOST))),
    "num_features": (None, null_or(integer(1, MOST))),
    "max_length": (REQUIRED, integer(1, MOST)),
    "width": (REQUIRED, integer(1, MOST)),
    "num_heads": (REQUIRED, integer(1, MOST)),
    "num_key_heads": (None, null_or(integer(1, MOST))),
    "head_size": (None, null_or(integer(1, MOST))),
    "attention": (REQUIRED, objects),
    "format_version": (1, integer(1, 1)),
    "task": ("next_token", one_of("next_token", "classify_token", "classify_sequence")),
    "num_classes": (None, null_or(integer(1, MOST))),
    "pooling": (None, null_or(one_of("first", "last", "mean"))),
    "causal": (True, boolean),
    "positions": ("orthogonal", one_of("orthogonal", "learned", "sinusoidal", "rotary", "none")),
    "rotary_base": (10000.0, positive),
    "norm": ("pre", one_of("pre", "post")),
    "mlp_ratio": (4.0, positive),
    "activation": ("gelu", one_of("gelu", "gelu_tanh", "relu", "silu")),
    "bias": (False, boolean),
    "tied_embeddings": (False, boolean),
    "norm_epsilon": (1e-5, positive),
    "labels": (None, null_or(distinct_names)),
}

ATTENTION: Fields = {
    "variant": ("dot_product", one_of("dot_product", "expressive", "elliptical")),
    "scale": (None, null_or(positive_float32)),
    "epsilon": (0.0, none_or_float32),
    "window": (0, integer(0, 2**31 - 1)),
    "softcap": (0.0, none_or_float32),
    "scope": (None, null_or(one_of("prefix", "sequence", "sequence-leaky"))),
    "scaling": (None, null_or(one_of("max", "mean"))),
}


def read_config(path: Path) -> dict[str, Any]:
    """The object of config.json with every default filled in."""
    content = path.read_bytes()
    if len(content) > MOST_BYTES:
        raise ValueError(f"config.json has more than {MOST_BYTES} bytes")
    config = json.loads(content.decode("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json is not one object")
    return complete(config)


def complete(config: dict[str, Any]) -> dict[str, Any]:
    config = fill(config, CONFIG)
    config["attention"] = [fill(entry, ATTENTION, f"attention[{i}].") for i, entry in enumerate(config["attention"])]
    check_input_and_output(config)
    check_sizes(config)
    for i, entry in enumerate(config["attention"]):
        check_attention(i, entry, config["causal"])
    return config


def fill(given: dict[str, Any], fields: Fields, within: str = "") -> dict[str, Any]:
    if unknown := set(given) - set(fields):
        raise ValueError(f"fields that the page does not list: {[within + name for name in sorted(unknown)]}")
    filled = {name: given.get(name, default) for name, (default, _) in fields.items()}
    for name, (_, allowed) in fields.items():
        if filled[name] is REQUIRED:
            raise ValueError(f"{within}{name} is required")
        if not allowed(filled[name]):
            raise ValueError(f"{within}{name} cannot be {filled[name]!r}")
    return filled


def refuse_unless(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_input_and_output(config: dict[str, Any]) -> None:
    reads_ids, reads_features = config["vocabulary_size"] is not None, config["num_features"] is not None
    refuse_unless(reads_ids != reads_features, "one of vocabulary_size and num_features is given, never both")
    task = config["task"]
    next_token = task == "next_token"
    refuse_unless(reads_ids or not next_token, "task next_token needs vocabulary_size")
    refuse_unless(
        (config["num_classes"] is None) == next_token,
        "num_classes is required by the classify tasks, and null for next_token",
    )
    refuse_unless(
        (config["pooling"] is not None) == (task == "classify_sequence"),
        "pooling is required by classify_sequence, and null for other tasks",
    )
    refuse_unless(not (config["pooling"] == "first" and config["causal"]), "pooling first is refused in a causal model")
    refuse_unless(next_token or not config["tied_embeddings"], "tied_embeddings is false unless the task is next_token")
    if config["labels"] is not None:
        num_labels = config["vocabulary_size"] if next_token else config["num_classes"]
        refuse_unless(len(config["labels"]) == num_labels, f"labels are not {num_labels}")


def check_sizes(config: dict[str, Any]) -> None:
    width, num_heads, head_size = config["width"], config["num_heads"], config["head_size"]
    if head_size is None:
        refuse_unless(width % num_heads == 0, "num_heads does not divide width, and there is no head_size")
    else:
        refuse_unless(head_size * num_heads <= MOST, f"head_size times num_heads is above {MOST}")
    if config["num_key_heads"] is not None:
        refuse_unless(num_heads % config["num_key_heads"] == 0, "num_key_heads does not divide num_heads")
    hidden = float(config["mlp_ratio"]) * float(width)
    refuse_unless(hidden.is_integer() and hidden <= MOST, f"mlp_ratio * width is {hidden}")
    if config["positions"] == "rotary":
        refuse_unless(letters(config).E % 2 == 0, "positions rotary needs an even head_size")


def check_attention(layer: int, entry: dict[str, Any], causal: bool) -> None:
    within = f"attention[{layer}]"
    if entry["variant"] == "elliptical":
        refuse_unless(layer > 0, f"{within}.variant: layer 0 cannot be elliptical")
        scopes = ("prefix", "sequence-leaky") if causal else ("sequence",)
        refuse_unless(entry["scope"] in scopes, f"{within}.scope is not one of {scopes}")
        refuse_unless(entry["scaling"] is not None, f"{within}.scaling is required")
    else:
        refuse_unless(entry["scope"] is None, f"{within}.scope is for elliptical layers")
        refuse_unless(entry["scaling"] is None, f"{within}.scaling is for elliptical layers")
    refuse_unless(entry["variant"] == "expressive" or entry["epsilon"] == 0, f"{within}.epsilon is for expressive")


@dataclass(frozen=True)
class Letters:
    """Those of the page; W, X and C are 0 where there is no such thing."""

    W: int
    X: int
    C: int
    P: int
    D: int
    H: int
    K: int
    E: int
    F: int
    L: int


def letters(config: dict[str, Any]) -> Letters:
    width, num_heads = config["width"], config["num_heads"]
    return Letters(
        W=config["vocabulary_size"] or 0,
        X=config["num_features"] or 0,
        C=config["num_classes"] or 0,
        P=config["max_length"] + has_leading_row(config),
        D=width,
        H=num_heads,
        K=config["num_key_heads"] or num_heads,
        E=config["head_size"] or width // num_heads,
        F=int(config["mlp_ratio"] * width),
        L=len(config["attention"]),
    )


def has_leading_row(config: dict[str, Any]) -> bool:
    return config["num_features"] is not None and config["pooling"] == "first"


def has_position_table(config: dict[str, Any]) -> bool:
    return config["positions"] in ("orthogonal", "learned", "sinusoidal")


def expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of a config without gaps."""
    of = letters(config)
    shapes: dict[str, tuple[int, ...]] = {}

    def expect(module: str, *shape: int) -> None:
        shapes[f"{module}.weight"] = shape
        if config["bias"]:
            shapes[f"{module}.bias"] = shape[:1]

    if config["vocabulary_size"] is not None:
        shapes["token_embedding.weight"] = (of.W, of.D)
    else:
        expect("feature_embedding.projection", of.D, of.X)
    if has_leading_row(config):
        shapes["feature_embedding.cls"] = (of.D,)
    if has_position_table(config):
        shapes["positions.table"] = (of.P, of.D)
    if config["positions"] == "rotary":
        shapes["rotary.cosine"] = shapes["rotary.sine"] = (of.P, of.E // 2)
    for layer in range(of.L):
        expect(f"layers.{layer}.attention_norm", of.D)
        expect(f"layers.{layer}.attention.query", of.H * of.E, of.D)
        expect(f"layers.{layer}.attention.key", of.K * of.E, of.D)
        expect(f"layers.{layer}.attention.value", of.K * of.E, of.D)
        expect(f"layers.{layer}.attention.output", of.D, of.H * of.E)
        expect(f"layers.{layer}.mlp_norm", of.D)
        expect(f"layers.{layer}.mlp.up", of.F, of.D)
        expect(f"layers.{layer}.mlp.down", of.D, of.F)
    if config["norm"] == "pre":
        expect("final_norm", of.D)
    if config["task"] == "next_token":
        expect("unembedding", of.W, of.D)
        if config["tied_embeddings"]:
            del shapes["unembedding.weight"]
    else:
        expect("classifier", of.C, of.D)
    return shapes
