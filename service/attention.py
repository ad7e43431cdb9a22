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
from attnserve.runtime import Runtime
from attnserve.service.engine import Answer
from attnserve.service.formats.coding import DTYPES
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import TooLarge
from attnserve.service.selection import MAX_ENTRIES, Selection
from attnserve.weighing import WeightRows

NAMES = {"entropy": ("entropy_bits", "entropy_normalised")}
WIDE_HINT = "ask for fewer layers, heads or queries, or send Accept: application/x-safetensors"
TINY = np.finfo(np.float32).tiny
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
    num_values = _count_values(request)
    value_bytes = DTYPES[attention.dtype].itemsize if attention.quantity == "weights" else 4
    if as_json and num_values > MAX_ENTRIES:
        raise TooLarge.about(
            "queries", f"a JSON answer may hold at most {MAX_ENTRIES} numbers, this one needs {num_values}; {WIDE_HINT}"
        )
    if num_values * value_bytes > max_response_bytes:
        is_wide = attention.quantity == "weights" and value_bytes > 1
        narrower = ", or send dtype float16 or uint8_sqrt" if is_wide else ""
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


def answer_bytes(request: PredictRequest) -> int:
    """Memory of what is computed for an answer about attention, until it is sent: as it is, coded, and as a body."""
    attention = request.attention
    if attention is None:
        return 0
    coded = DTYPES[attention.dtype].itemsize if attention.quantity == "weights" else 4
    return _count_values(request) * (4 + 2 * coded)


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


def _count_values(request: PredictRequest) -> int:
    """Numbers in an answer about attention."""
    attention = request.attention
    assert attention is not None
    num_heads = len(attention.layers) * len(attention.heads)
    if attention.quantity == "weights":
        num_pairs = (len(steps) * length for steps, length in zip(attention.queries, request.lengths, strict=True))
        return num_heads * sum(num_pairs)
    measures = measures_of(attention)
    has_received = "received" in measures
    per_sequence = (len(measures) - has_received + has_received * length for length in request.lengths)
    return num_heads * sum(per_sequence)


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
            if attention.quantity == "weights":
                weights = runtime.weighing.weigh_all(layer, query, key, steps=steps, heads=heads.tolist())
                per_layer.append({"weights": weights})
            else:
                blocks = runtime.weighing.weigh(layer, query, key, steps=steps, heads=heads.tolist())
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
        keys = np.arange(block.columns.start, block.columns.stop)
        if "entropy" in diagnostics:
            # A weight of 0 adds 0 times a finite number. Not `where=`, which is ten times slower.
            entropy = -np.einsum("hqk,hqk->hq", weights, np.log2(np.maximum(weights, TINY)))
            num_seen = block.last_key - block.first_key + 1
            add("entropy_bits", entropy.sum(1, dtype=np.float64), len(steps))
            several = num_seen > 1
            normalised = entropy[:, several] / np.log2(num_seen[several])
            add("entropy_normalised", normalised.sum(1), several.sum())
        if "distance" in diagnostics:
            distance = np.abs(steps[:, None] - keys).astype(np.float32)
            add("distance", np.einsum("hqk,qk->hq", weights, distance).sum(1, dtype=np.float64), len(steps))
        if "sink" in diagnostics:
            add("sink", _weights_at(block, np.zeros_like(steps)).sum(1, dtype=np.float64), len(steps))
        if "previous_token" in diagnostics:
            later = steps > 0
            previous = _weights_at(block, steps - 1)[:, later]
            add("previous_token", previous.sum(1, dtype=np.float64), later.sum())
        if "self" in diagnostics:
            add("self", _weights_at(block, steps).sum(1, dtype=np.float64), len(steps))
        if "received" in diagnostics:
            total, count = np.zeros((len(weights), num_keys)), np.zeros(num_keys)
            total[:, block.columns] = weights.sum(1)
            count[block.columns] = ((keys >= block.first_key[:, None]) & (keys <= block.last_key[:, None])).sum(0)
            add("received", total, count)
    ordered = [measure for name in diagnostics for measure in NAMES.get(name, (name,))]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no row qualified
        return {name: (sums[name] / counts[name]).astype(np.float32) for name in ordered}


def _weights_at(block: WeightRows, keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """[H, Q] weight of one key per row; 0 where that is out of sight, or no key at all."""
    columns = keys - block.columns.start
    inside = (columns >= 0) & (columns < block.weights.shape[2])
    picked: NDArray[np.float32] = block.weights[:, np.arange(len(columns)), np.where(inside, columns, 0)] * inside
    return picked
