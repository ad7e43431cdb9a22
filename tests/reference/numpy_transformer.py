"""A second implementation, in float64 and numpy, written from docs/checkpoint.md alone.

It shares no line with the package and imports nothing of it: where the two agree, the page says enough and both do
what it says. One sequence at a time, no batching, no tricks. Names and letters are those of the page.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]

REQUIRED = object()

CONFIG_DEFAULTS: dict[str, Any] = {
    "vocabulary_size": REQUIRED,
    "max_length": REQUIRED,
    "width": REQUIRED,
    "num_heads": REQUIRED,
    "attention": REQUIRED,
    "format_version": 1,
    "task": "next_token",
    "causal": True,
    "positions": "orthogonal",
    "rotary_base": 10000.0,
    "mlp_ratio": 4.0,
    "activation": "gelu",
    "bias": False,
    "norm_epsilon": 1e-5,
    "labels": None,
}

ATTENTION_DEFAULTS: dict[str, Any] = {
    "variant": "dot_product",
    "scale": None,
    "epsilon": 0.0,
    "window": 0,
    "softcap": 0.0,
    "scope": None,
    "scaling": None,
}

erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@dataclass(frozen=True)
class Model:
    config: dict[str, Any]
    tensors: dict[str, Array]


@dataclass(frozen=True)
class Pass:
    """What one sequence gave: logits [n, W] and weights [L, H, n, n], rows queries, columns keys."""

    logits: Array
    maps: Array


def load(folder: str | os.PathLike[str]) -> Model:
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = fill(config, CONFIG_DEFAULTS)
    config["attention"] = [fill(entry, ATTENTION_DEFAULTS) for entry in config["attention"]]
    stored = load_file(Path(folder) / "model.safetensors")
    expected = expected_shapes(config)
    if {name: tensor.shape for name, tensor in stored.items()} != expected:
        raise ValueError(f"tensors are not those of the page: {sorted(set(stored) ^ set(expected)) or 'shapes differ'}")
    return Model(config, {name: tensor.astype(np.float64) for name, tensor in stored.items()})


def fill(fields: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(fields) - set(defaults):
        raise ValueError(f"fields that the page does not list: {sorted(unknown)}")
    filled = {**defaults, **fields}
    if missing := [name for name, value in filled.items() if value is REQUIRED]:
        raise ValueError(f"fields without a value: {missing}")
    return filled


def expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    vocabulary, longest, width = config["vocabulary_size"], config["max_length"], config["width"]
    hidden = round(config["mlp_ratio"] * width)
    half = width // config["num_heads"] // 2
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (vocabulary, width)}
    if config["positions"] in ("orthogonal", "learned"):
        shapes["positions.table"] = (longest, width)
    if config["positions"] == "rotary":
        shapes["rotary.cosine"] = shapes["rotary.sine"] = (longest, half)

    def expect(module: str, *shape: int) -> None:
        shapes[f"{module}.weight"] = shape
        if config["bias"]:
            shapes[f"{module}.bias"] = shape[:1]

    for layer in range(len(config["attention"])):
        expect(f"layers.{layer}.attention_norm", width)
        for projection in ("query", "key", "value", "output"):
            expect(f"layers.{layer}.attention.{projection}", width, width)
        expect(f"layers.{layer}.mlp_norm", width)
        expect(f"layers.{layer}.mlp.up", hidden, width)
        expect(f"layers.{layer}.mlp.down", width, hidden)
    expect("final_norm", width)
    expect("unembedding", vocabulary, width)
    return shapes


def logits(model: Model, tokens: Any) -> Array:
    """Scores of one sequence, [n, W]."""
    return run(model, tokens).logits


def maps(model: Model, tokens: Any) -> Array:
    """Attention weights of one sequence, [L, H, n, n]: rows are queries, columns are keys."""
    return run(model, tokens).maps


def run(model: Model, tokens: Any) -> Pass:
    config, tensors = model.config, model.tensors
    tokens = np.asarray(tokens, np.int64)
    num_steps = len(tokens)
    x = tensors["token_embedding.weight"][tokens]
    if config["positions"] in ("orthogonal", "learned"):
        x = x + tensors["positions.table"][:num_steps]
    weights = []
    previous_value = None
    for layer in range(len(config["attention"])):
        y = norm(model, f"layers.{layer}.attention_norm", x)
        query, key, value = (
            heads(model, linear(model, f"layers.{layer}.attention.{projection}", y))
            for projection in ("query", "key", "value")
        )
        w = attention_weights(model, layer, query, key, value, previous_value)
        attended = np.einsum("hts,she->the", w, value).reshape(num_steps, config["width"])
        x = x + linear(model, f"layers.{layer}.attention.output", attended)
        x = x + mlp(model, layer, norm(model, f"layers.{layer}.mlp_norm", x))
        weights.append(w)
        previous_value = value
    return Pass(linear(model, "unembedding", norm(model, "final_norm", x)), np.stack(weights))


def linear(model: Model, name: str, rows: Array) -> Array:
    product: Array = rows @ model.tensors[f"{name}.weight"].T
    return product + model.tensors.get(f"{name}.bias", 0.0)


def norm(model: Model, name: str, rows: Array) -> Array:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + model.config["norm_epsilon"])
    return normed * model.tensors[f"{name}.weight"] + model.tensors.get(f"{name}.bias", 0.0)


def mlp(model: Model, layer: int, y: Array) -> Array:
    activation = ACTIVATIONS[model.config["activation"]]
    return linear(model, f"layers.{layer}.mlp.down", activation(linear(model, f"layers.{layer}.mlp.up", y)))


def heads(model: Model, rows: Array) -> Array:
    """[n, D] -> [n, H, E]."""
    num_heads = model.config["num_heads"]
    return rows.reshape(len(rows), num_heads, model.config["width"] // num_heads)


def attention_weights(
    model: Model, layer: int, query: Array, key: Array, value: Array, previous_value: Array | None
) -> Array:
    """w[h, t, s] from the queries, keys and values [n, H, E] of a layer."""
    config = model.config
    options = config["attention"][layer]
    if options["variant"] == "elliptical":
        assert previous_value is not None, "layer 0 cannot be elliptical"
        query = query * metric(options, value, previous_value)
    if config["positions"] == "rotary":
        query, key = rotate(model, query), rotate(model, key)
    scale = options["scale"]
    if scale is None:
        scale = 1 / math.sqrt(config["width"] // config["num_heads"])
    z = scale * np.einsum("the,she->hts", query, key)
    if options["softcap"] > 0:
        z = options["softcap"] * np.tanh(z / options["softcap"])
    allowed = allowed_keys(len(query), config["causal"], options["window"])
    if options["variant"] == "expressive":
        return expressive(z, allowed, options["epsilon"])
    return softmax(z, allowed)


def metric(options: dict[str, Any], value: Array, previous_value: Array) -> Array:
    """m[t, h, e]."""
    differences = np.abs(value - previous_value)
    if options["scope"] == "prefix":
        a = np.cumsum(differences, axis=0)
    elif options["scope"] in ("sequence", "sequence-leaky"):
        a = np.broadcast_to(differences.sum(axis=0), differences.shape)
    else:
        raise ValueError(f"scope {options['scope']!r}")
    if options["scaling"] == "max":
        denominator = a.max(axis=-1, keepdims=True)
    elif options["scaling"] == "mean":
        denominator = a.mean(axis=-1, keepdims=True)
    else:
        raise ValueError(f"scaling {options['scaling']!r}")
    zero = denominator == 0
    return np.where(zero, 1.0, a / np.where(zero, 1.0, denominator))


def rotate(model: Model, a: Array) -> Array:
    """Pairs channel e with channel e + E/2, by the row of each step; a is [n, H, E]."""
    half = a.shape[-1] // 2
    c = model.tensors["rotary.cosine"][: len(a), None, :]
    s = model.tensors["rotary.sine"][: len(a), None, :]
    first, second = a[..., :half], a[..., half:]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


def allowed_keys(num_steps: int, causal: bool, window: int) -> NDArray[np.bool_]:
    """[query, key]."""
    t, s = np.arange(num_steps)[:, None], np.arange(num_steps)[None, :]
    allowed = np.ones((num_steps, num_steps), bool)
    if causal:
        allowed &= s <= t
    if window > 0:
        allowed &= np.abs(t - s) < window
    return allowed


def softmax(z: Array, allowed: NDArray[np.bool_]) -> Array:
    """The maximum is subtracted against overflow; it cancels."""
    largest = np.where(allowed, z, -np.inf).max(axis=-1, keepdims=True)
    powers: Array = np.exp(np.where(allowed, z - largest, -np.inf))
    weights: Array = powers / powers.sum(axis=-1, keepdims=True)
    return weights


def expressive(z: Array, allowed: NDArray[np.bool_], epsilon: float) -> Array:
    u = np.where(allowed, z**2 / (1 + z**2), 0.0)
    total = epsilon + u.sum(axis=-1, keepdims=True)
    return u / np.where(total == 0, 1.0, total)
