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
from attnserve.service.preprocess import MAX_ENTRIES, AttentionRequest, PredictRequest
from attnserve.service.problems import TooLarge, too_large

NAMES = {"entropy": ("entropy_bits", "entropy_normalised")}
WIDE_HINT = "ask for fewer layers, heads or queries, or send Accept: application/x-safetensors"


def captures_for(manifest: Manifest, attention: AttentionRequest) -> frozenset[str]:
    """Outputs a forward pass must capture to answer `attention`."""
    return frozenset(
        manifest.layers[layer].captures[kind] for layer in attention.layers for kind in ("query", "key")
    )


def measures_of(attention: AttentionRequest) -> list[str]:
    """Names of the measures in the answer."""
    return [measure for name in attention.diagnostics for measure in NAMES.get(name, (name,))]


def check_size(request: PredictRequest, *, as_json: bool, max_response_bytes: int) -> None:
    """Refuse an answer that would be too large, before any work.

    Raises:
        TooLarge: names the number of values, the limit and a cheaper way to ask.
    """
    attention = request.attention
    assert attention is not None
    num_heads = len(attention.layers) * len(attention.heads)
    lengths = [len(sequence) for sequence in request.sequences]
    num_values = 0
    if attention.quantity == "weights":
        pairs = zip(attention.queries, lengths, strict=True)
        num_values = num_heads * sum(len(steps) * length for steps, length in pairs)
    else:
        per_sequence = [len(measures_of(attention)) + ("received" in attention.diagnostics) * n for n in lengths]
        num_values = num_heads * sum(per_sequence)
    if as_json and num_values > MAX_ENTRIES:
        raise too_large(
            "queries", f"a JSON answer may hold at most {MAX_ENTRIES} numbers, this one needs {num_values}; {WIDE_HINT}"
        )
    num_bytes = num_values * np.dtype(attention.dtype).itemsize
    if num_bytes > max_response_bytes:
        raise TooLarge(
            f"the answer would hold {num_bytes} bytes, at most {max_response_bytes} may be asked for at a time; "
            "ask for fewer layers, heads or queries, or send dtype float16"
        )


def compute_arrays(
    runtime: Runtime, request: PredictRequest, answers: list[Answer]
) -> list[dict[str, NDArray[np.floating[Any]]]]:
    """Per sequence, the arrays asked for, layers and heads in the order asked for.

    `weights [layers, heads, queries, keys]`, or one `[layers, heads]` array per measure (`received`:
    `[layers, heads, keys]`). NaN stands for "no row qualifies" and is null in JSON.
    """
    attention = request.attention
    assert attention is not None
    results = []
    for sequence, steps, answer in zip(request.sequences, attention.queries, answers, strict=True):
        per_layer: list[dict[str, NDArray[Any]]] = []
        for index in attention.layers:
            layer = runtime.manifest.layers[index]
            query = answer.captures[layer.captures["query"]][steps]
            key = answer.captures[layer.captures["key"]]
            blocks = runtime.weigh(layer, query, key, steps=steps, heads=attention.heads)
            if attention.quantity == "weights":
                weights = np.concatenate([block.weights for block in blocks], axis=1)
                per_layer.append({"weights": weights.astype(attention.dtype, copy=False)})
            else:
                per_layer.append(diagnose(blocks, attention.diagnostics, len(sequence)))
        names = per_layer[0]
        results.append({name: np.stack([arrays[name] for arrays in per_layer]) for name in names})
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
