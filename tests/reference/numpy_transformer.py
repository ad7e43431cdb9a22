"""A second implementation, in float64 and numpy, written from docs/checkpoint.md alone.

It shares no line with the package and imports nothing of it: where the two agree, the page says enough and both do
what it says. One sequence at a time, no batching, no tricks. Names and letters are those of the page. config.json and
the table of tensors are in numpy_config.py.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.reference.numpy_config import expected_shapes, has_leading_row, has_position_table, letters, read_config

Array = NDArray[np.float64]

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
    """What one sequence gave: logits [n, W], [n, C] or (classify_sequence) [1, C], and weights [L, H, n, n], rows
    queries, columns keys; n counts the leading row, if there is one."""

    logits: Array
    maps: Array


def load(folder: str | os.PathLike[str]) -> Model:
    config = read_config(Path(folder) / "config.json")
    if config["num_features"] is not None and (Path(folder) / "tokenizer.json").exists():
        raise ValueError("tokenizer.json is of a model that reads ids only")
    stored = load_file(Path(folder) / "model.safetensors")
    check_tensors(stored, expected_shapes(config))
    return Model(config, {name: tensor.astype(np.float64) for name, tensor in stored.items()})


def check_tensors(stored: dict[str, NDArray[Any]], expected: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(set(expected) - set(stored)):
        raise ValueError(f"tensors that are missing: {missing}")
    if unknown := sorted(set(stored) - set(expected)):
        raise ValueError(f"tensors that the page does not list: {unknown}")
    for name, tensor in stored.items():
        if tensor.shape != expected[name]:
            raise ValueError(f"{name} has shape {tensor.shape}, not {expected[name]}")
        if tensor.dtype != np.float32:
            raise ValueError(f"{name} is {tensor.dtype}, not float32")
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} has numbers that are not finite")


def rounded(model: Model) -> Model:
    """With the weights that a bundle in int8 has."""

    def round_weight(name: str, tensor: Array) -> Array:
        if not name.endswith(".weight") or tensor.ndim != 2:
            return tensor
        scale = (np.abs(tensor).max(axis=1, keepdims=True) / 127).astype(np.float32)
        scale[scale == 0] = 1
        integers = np.rint(tensor.astype(np.float32) / scale)
        return (integers * scale).astype(np.float64)

    return Model(model.config, {name: round_weight(name, tensor) for name, tensor in model.tensors.items()})


def logits(model: Model, sequence: Any) -> Array:
    """Scores of one sequence: [n, W], [n, C] or [1, C]."""
    return run(model, sequence).logits


def maps(model: Model, sequence: Any) -> Array:
    """Attention weights of one sequence, [L, H, n, n]: rows are queries, columns are keys."""
    return run(model, sequence).maps


def run(model: Model, sequence: Any) -> Pass:
    """`sequence` is what a client sends: token ids, or feature vectors without the leading row."""
    x = embedded(model, sequence)
    pre = model.config["norm"] == "pre"
    weights = []
    value = None
    for layer in range(letters(model.config).L):
        attention_norm, mlp_norm = f"layers.{layer}.attention_norm", f"layers.{layer}.mlp_norm"
        y = norm(model, attention_norm, x) if pre else x
        attended, w, value = attention(model, layer, y, value)
        weights.append(w)
        if pre:
            x = x + attended
            x = x + mlp(model, layer, norm(model, mlp_norm, x))
        else:
            x = norm(model, attention_norm, x + attended)
            x = norm(model, mlp_norm, x + mlp(model, layer, x))
    y = norm(model, "final_norm", x) if pre else x
    return Pass(output(model, y), np.stack(weights))


def embedded(model: Model, sequence: Any) -> Array:
    """x [n, D] before the first layer."""
    config, tensors = model.config, model.tensors
    if not 1 <= len(sequence) <= config["max_length"]:
        raise ValueError(f"a sequence of {len(sequence)}, not of 1 to {config['max_length']}")
    x = embedded_ids(model, sequence) if config["vocabulary_size"] is not None else embedded_features(model, sequence)
    if has_leading_row(config):
        x = np.concatenate([tensors["feature_embedding.cls"][None], x])
    return x + tensors["positions.table"][: len(x)] if has_position_table(config) else x


def embedded_ids(model: Model, sequence: Any) -> Array:
    ids = np.asarray(sequence)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are {ids.dtype} of shape {ids.shape}, not a list of integers")
    if ids.min() < 0 or ids.max() >= model.config["vocabulary_size"]:
        raise ValueError(f"token ids are {ids.min()} .. {ids.max()}")
    rows: Array = model.tensors["token_embedding.weight"][ids]
    return rows


def embedded_features(model: Model, sequence: Any) -> Array:
    vectors = np.asarray(sequence, np.float64)
    if vectors.ndim != 2 or vectors.shape[1] != model.config["num_features"]:
        raise ValueError(f"feature vectors are of shape {vectors.shape}, not [n, {model.config['num_features']}]")
    return linear(model, "feature_embedding.projection", vectors)


def output(model: Model, y: Array) -> Array:
    config, tensors = model.config, model.tensors
    if config["task"] == "classify_sequence":
        return linear(model, "classifier", pooled(config["pooling"], y)[None])
    if config["task"] == "classify_token":
        return linear(model, "classifier", y)
    if config["tied_embeddings"]:
        scores: Array = y @ tensors["token_embedding.weight"].T
        return scores + tensors.get("unembedding.bias", 0.0)
    return linear(model, "unembedding", y)


def pooled(pooling: str, y: Array) -> Array:
    rows: dict[str, Array] = {"first": y[0], "last": y[-1], "mean": y.mean(axis=0)}
    return rows[pooling]


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


def attention(model: Model, layer: int, y: Array, previous_value: Array | None) -> tuple[Array, Array, Array]:
    """attention_l [n, D], its weights w[h, t, s], and its values v[t, k, e]."""
    of = letters(model.config)
    name = f"layers.{layer}.attention"
    query = linear(model, f"{name}.query", y).reshape(len(y), of.H, of.E)
    key = linear(model, f"{name}.key", y).reshape(len(y), of.K, of.E)
    value = linear(model, f"{name}.value", y).reshape(len(y), of.K, of.E)
    w = attention_weights(model, layer, query, key, value, previous_value)
    o = np.einsum("hts,she->the", w, for_query_heads(model, value))
    return linear(model, f"{name}.output", o.reshape(len(y), of.H * of.E)), w, value


def for_query_heads(model: Model, a: Array) -> Array:
    """a[t, k, e] -> a[t, k(h), e]."""
    of = letters(model.config)
    return a[:, [h // (of.H // of.K) for h in range(of.H)]]


def attention_weights(
    model: Model, layer: int, query: Array, key: Array, value: Array, previous_value: Array | None
) -> Array:
    """w[h, t, s] from the queries [n, H, E], and the keys and values [n, K, E], of a layer."""
    config = model.config
    options = config["attention"][layer]
    if options["variant"] == "elliptical":
        assert previous_value is not None, "layer 0 cannot be elliptical"
        query = query * for_query_heads(model, metric(options, value, previous_value))
    if config["positions"] == "rotary":
        query, key = rotate(model, query), rotate(model, key)
    scale = options["scale"]
    if scale is None:
        scale = 1 / math.sqrt(letters(config).E)
    z = scale * np.einsum("the,she->hts", query, for_query_heads(model, key))
    if options["softcap"] > 0:
        z = options["softcap"] * np.tanh(z / options["softcap"])
    allowed = allowed_keys(len(query), config["causal"], options["window"])
    if options["variant"] == "expressive":
        return expressive(z, allowed, options["epsilon"])
    return softmax(z, allowed)


def metric(options: dict[str, Any], value: Array, previous_value: Array) -> Array:
    """m[t, k, e]."""
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
    """Pairs channel e with channel e + E/2, by the row of each step; a is [n, H, E] or [n, K, E]."""
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
