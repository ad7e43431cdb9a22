"""Attention: diagnostics and weights, recomputed from captures for exactly what was asked.

Rows are queries. Definitions (w the weights of a row i, all averaged over the query rows asked for):

    entropy_bits        -sum w log2 w
    entropy_normalised  entropy_bits / log2(keys the row may see), over rows that see at least two; else null
    distance            sum w |i - j|
    sink                w of the first key of the sequence
    previous_token      w of key i - 1, over rows that have one; else null
    self                w of key i
    received            per key: mean w over the asked rows that may see it; null where none may
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.runtime import Runtime, WeightRows
from attnserve.service.engine import Answer
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import TooLarge
from attnserve.service.selection import MAX_ENTRIES, Selection

NAMES = {"entropy": ("entropy_bits", "entropy_normalised")}
WIDE_HINT = "ask for fewer layers, heads or queries, or send Accept: application/x-safetensors"
# Weights computed for one answer, kept or not: tens of seconds of one core.
MAX_WEIGHTS = 1 << 30
# Of one token of a continuation: its entry in the answer, until that is sent.
CONTINUED_BYTES = 512


def captures_for(manifest: Manifest, attention: Selection) -> frozenset[str]:
    """Outputs a forward pass must capture to answer `attention`."""
    return frozenset(manifest.layers[layer].captures[kind] for layer in attention.layers for kind in ("query", "key"))


def measures_of(attention: Selection) -> list[str]:
    """Names of the measures in the answer."""
    return [measure for name in attention.diagnostics for measure in NAMES.get(name, (name,))]


def check_size(request: PredictRequest, *, as_json: bool, max_response_bytes: int) -> None:
    """Refuse an answer that would be too large, before any work.

    Raises:
        TooLarge: names what there is too much of, the limit and a cheaper way to ask.
    """
    attention = request.attention
    assert attention is not None
    lengths = request.lengths
    num_pairs = sum(len(steps) * length for steps, length in zip(attention.queries, lengths, strict=True))
    num_heads = len(attention.layers) * len(attention.heads)
    if attention.quantity == "weights":
        num_values, value_bytes = num_heads * num_pairs, np.dtype(attention.dtype).itemsize
    else:
        measures = measures_of(attention)
        has_received = "received" in measures
        per_sequence = [len(measures) - has_received + has_received * length for length in lengths]
        num_values, value_bytes = num_heads * sum(per_sequence), 4
    if as_json and num_values > MAX_ENTRIES:
        raise TooLarge.about(
            "queries", f"a JSON answer may hold at most {MAX_ENTRIES} numbers, this one needs {num_values}; {WIDE_HINT}"
        )
    if num_values * value_bytes > max_response_bytes:
        narrower = ", or send dtype float16" if attention.quantity == "weights" and value_bytes > 2 else ""
        raise TooLarge.about(
            "queries",
            f"an answer may hold at most {max_response_bytes} bytes, this one needs {num_values * value_bytes}; "
            f"ask for fewer layers, heads or queries{narrower}",
        )
    num_weights = len(set(attention.layers)) * len(set(attention.heads)) * num_pairs
    if num_weights > MAX_WEIGHTS:
        raise TooLarge.about(
            "queries",
            f"at most {MAX_WEIGHTS} weights are computed for one answer, this one needs {num_weights}; "
            "ask for fewer layers, heads, queries or sequences",
        )


def held_bytes(request: PredictRequest, manifest: Manifest) -> int:
    """Memory that `request` takes until it is answered: its inputs, logits and captures, and what it goes on with."""
    num_logits = manifest.num_outputs * sum(len(steps) for steps in request.positions)
    layers = () if request.attention is None else set(request.attention.layers)
    per_row = sum(
        (manifest.layers[index].num_heads + manifest.layers[index].num_key_heads) * manifest.layers[index].head_size
        for index in layers
    )
    going_on = 0 if request.continuation is None else request.continuation.num_tokens * len(request.inputs)
    num_bytes = sum(read.num_bytes for read in request.inputs) + CONTINUED_BYTES * going_on
    return num_bytes + 4 * (num_logits + per_row * sum(request.lengths))


def compute_arrays(
    runtime: Runtime, request: PredictRequest, answers: list[Answer]
) -> list[dict[str, NDArray[np.floating[Any]]]]:
    """Per sequence, the arrays asked for, layers and heads in the order asked for.

    `weights [layers, heads, queries, keys]`, or one `[layers, heads]` array per measure (`received`:
    `[layers, heads, keys]`). NaN stands for "no row qualifies" and is null in JSON.
    """
    attention = request.attention
    assert attention is not None
    # Each layer and head once, however often it is named: a list of one head ten thousand times is a short body.
    layers = sorted(set(attention.layers))
    heads, place_of_head = np.unique(attention.heads, return_inverse=True)
    place_of_layer = np.searchsorted(layers, attention.layers)
    results = []
    for length, steps, answer in zip(request.lengths, attention.queries, answers, strict=True):
        per_layer: list[dict[str, NDArray[Any]]] = []
        for index in layers:
            layer = runtime.manifest.layers[index]
            query = answer.captures[layer.captures["query"]][steps]
            key = answer.captures[layer.captures["key"]]
            blocks = runtime.weigh(layer, query, key, steps=steps, heads=heads.tolist())
            if attention.quantity == "weights":
                weights = np.concatenate([block.weights for block in blocks], axis=1)
                per_layer.append({"weights": weights.astype(attention.dtype, copy=False)})
            else:
                per_layer.append(diagnose(blocks, attention.diagnostics, length))
        results.append(
            {
                name: np.stack([arrays[name] for arrays in per_layer])[np.ix_(place_of_layer, place_of_head)]
                for name in per_layer[0]
            }
        )
    return results


def diagnose(
    blocks: Iterator[WeightRows], diagnostics: tuple[str, ...], num_keys: int
) -> dict[str, NDArray[np.float32]]:
    """Measures of one layer, [heads] each (`received`: [heads, keys]), in the order asked for."""
    sums: dict[str, Any] = {}
    counts: dict[str, Any] = {}

    def add(name: str, values: Any, count: Any) -> None:
        sums[name] = sums.get(name, 0.0) + values
        counts[name] = counts.get(name, 0) + count

    for block in blocks:
        weights, steps = block.weights, block.steps
        rows = np.arange(len(steps))
        num_seen = block.last_key - block.first_key + 1
        if "entropy" in diagnostics:
            # log2 of 0 is avoided by a select: a weight of 0 adds 0.
            logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
            entropy = -np.einsum("hqk,hqk->hq", weights, logs, dtype=np.float64)
            add("entropy_bits", entropy.sum(1), len(steps))
            several = num_seen > 1
            normalised = entropy[:, several] / np.log2(num_seen[several])
            add("entropy_normalised", normalised.sum(1), several.sum())
        if "distance" in diagnostics:
            distance = np.abs(steps[:, None] - np.arange(num_keys)).astype(np.float32)
            add("distance", np.einsum("hqk,qk->h", weights, distance, dtype=np.float64), len(steps))
        if "sink" in diagnostics:
            add("sink", weights[:, :, 0].sum(1, dtype=np.float64), len(steps))
        if "previous_token" in diagnostics:
            later = steps > 0
            add("previous_token", weights[:, rows[later], steps[later] - 1].sum(1, dtype=np.float64), later.sum())
        if "self" in diagnostics:
            add("self", weights[:, rows, steps].sum(1, dtype=np.float64), len(steps))
        if "received" in diagnostics:
            keys = np.arange(num_keys)
            seen = (keys >= block.first_key[:, None]) & (keys <= block.last_key[:, None])
            add("received", weights.sum(1, dtype=np.float64), seen.sum(0))
    ordered = [measure for name in diagnostics for measure in NAMES.get(name, (name,))]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no row qualified
        return {name: (sums[name] / counts[name]).astype(np.float32) for name in ordered}
