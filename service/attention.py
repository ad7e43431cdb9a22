"""Attention: what a question needs, how large its answer is, and the answer, from the captures of a forward pass."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer, Manifest
from attnserve.rows import visible_keys
from attnserve.service.ablation import measure_importance
from attnserve.service.attended import Attended
from attnserve.service.described import choose_described, measure_described
from attnserve.service.diagnostics import DIAGNOSTICS, diagnose
from attnserve.service.heads import Heads
from attnserve.service.job import Answer
from attnserve.service.layout import lay_out
from attnserve.service.maps import compute_maps
from attnserve.service.measures import mean_cosine
from attnserve.service.passes import Head, list_ablations
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import TooLarge
from attnserve.service.question import MAPS, Question
from attnserve.service.rollout import compute_rollout
from attnserve.service.selection import MAX_ENTRIES
from attnserve.top import suffices
from attnserve.weighing import Weighing

WIDE_HINT = "ask for fewer layers, heads or queries, or send Accept: application/x-safetensors"
# Weights computed for one answer, kept or not: seconds of one core.
MAX_WEIGHTS = 1 << 30
# Passes without some head, beside the one that answers: each is as much work, and its logits are kept to the end.
MAX_ABLATIONS = 4096
NO_ABLATIONS: Mapping[Head, Sequence[Answer]] = {}
# Of one token of a continuation: its entry in the answer, until that is sent.
CONTINUED_BYTES = 512
# Of an entry that a graph has chosen, an id and a logit; a normaliser is counted as one more.
TOP_BYTES = 12


def captures_for(manifest: Manifest, question: Question) -> frozenset[str]:
    """Outputs that a forward pass must capture to answer `question`."""
    kinds = {"query", "key"}
    if question.quantity == "diagnostics":
        has_rows = any(DIAGNOSTICS[name].axis not in ("layer", "ablation") for name in question.diagnostics)
        kinds = kinds if has_rows or question.is_compared else set()
        kinds |= {"hidden"} if "collapse" in question.diagnostics else set()
    elif question.quantity in ("weighted", "qk"):
        kinds.add("value_norm")
    elif question.quantity == "metric":
        kinds = {"metric"}
    captured = (manifest.layers[index].captures for index in set(question.layers))
    return frozenset(names[kind] for names in captured for kind in kinds if kind in names)


def check_size(request: PredictRequest, layers: Sequence[Layer], *, as_json: bool, max_response_bytes: int) -> None:
    """Refuse an answer that would be too large, before any work.

    Raises:
        TooLarge: names what there is too much of, the limit and a cheaper way to ask.
    """
    question = request.attention
    assert question is not None
    tensors = [tensor for one in lay_out(question, layers, request.lengths) for tensor in one]
    num_values = sum(tensor.num_values for tensor in tensors)
    if as_json and num_values > MAX_ENTRIES:
        raise TooLarge.about(
            "queries", f"a JSON answer may hold at most {MAX_ENTRIES} numbers, this one needs {num_values}; {WIDE_HINT}"
        )
    num_bytes = sum(tensor.num_bytes for tensor in tensors)
    if num_bytes > max_response_bytes:
        is_wide = question.quantity in MAPS and question.dtype != "uint8_sqrt"
        narrower = ", or send dtype float16 or uint8_sqrt" if is_wide else ""
        raise TooLarge.about(
            "queries",
            f"an answer may hold at most {max_response_bytes} bytes, this one needs {num_bytes}; "
            f"ask for fewer layers, heads or queries{narrower}",
        )
    whole = count_joined(question, request.lengths)
    if 4 * whole > max_response_bytes:
        raise TooLarge.about(
            "reduce",
            f"maps that are put together before they are cut down may take {max_response_bytes} bytes, these need "
            f"{4 * whole}; ask for fewer queries or keys",
        )
    num_sides = 1 if question.compare is None else 2
    num_passes = num_sides * len(list_ablations(request)) * len(request.inputs)
    if num_passes > MAX_ABLATIONS:
        raise TooLarge.about(
            "diagnostics",
            f"sequences x heads whose importance is measured may be at most {MAX_ABLATIONS}, got {num_passes}; "
            "ask for fewer at a time",
        )
    num_weights = count_weights(question, request.lengths)
    if num_weights > MAX_WEIGHTS:
        raise TooLarge.about(
            "queries",
            f"at most {MAX_WEIGHTS} weights are computed for one answer, this one needs {num_weights}; "
            "ask for fewer layers, heads, queries or sequences",
        )


def count_weights(question: Question, lengths: Sequence[int]) -> int:
    """Weights that are computed, whether shown or only measured; those that no row may see included."""
    if question.quantity in ("qk", "metric"):
        return 0
    if question.quantity == "diagnostics" and not rows_of(question.diagnostics):
        return 0
    rows = lengths if question.quantity == "rollout" else [len(steps) for steps in question.queries]
    # Compared: those of both sides, and both once more for their divergence.
    sides = 1 if question.compare is None else 4
    return sides * Heads(question).num_pairs * sum(num * length for num, length in zip(rows, lengths, strict=True))


def count_own_weights(question: Question, lengths: Sequence[int]) -> int:
    """The same of one side of a comparison, without their divergence."""
    return count_weights(dataclasses.replace(question, compare=None), lengths)


def count_joined(question: Question, lengths: Sequence[int]) -> int:
    """Numbers of the longest sequence's maps that must be whole before they can be cut down."""
    heads = Heads(question)
    if not question.is_sparse or not (heads.is_reduced or question.quantity == "rollout"):
        return 0
    num_maps = 1 if question.quantity == "rollout" else heads.num_targets
    sizes = zip(question.queries, question.num_keys(lengths), strict=True)
    return num_maps * max(len(queries) * num_keys for queries, num_keys in sizes)


def answer_bytes(request: PredictRequest, layers: Sequence[Layer]) -> int:
    """Memory of what is computed for an answer about attention, until it is sent: as it is, coded, and as a body."""
    assert request.attention is not None
    layout = lay_out(request.attention, layers, request.lengths)
    return sum(4 * tensor.num_values + 2 * tensor.num_bytes for tensors in layout for tensor in tensors)


def held_bytes(request: PredictRequest, manifest: Manifest) -> int:
    """Memory that `request` takes until it is answered: its inputs, logits and captures, and what it goes on with."""
    num_answers = (1 + len(list_ablations(request))) * sum(len(steps) for steps in request.positions)
    answer_bytes = 4 * manifest.num_outputs
    if manifest.top_k is not None and suffices(manifest.top_k, request.num_entries):
        answer_bytes = TOP_BYTES * (manifest.top_k + 1)
    captures = frozenset() if request.attention is None else captures_for(manifest, request.attention)
    per_row = sum(math.prod(map(int, tensor.shape[1:])) for tensor in manifest.outputs if tensor.name in captures)
    going_on = 0 if request.continuation is None else request.continuation.num_tokens * len(request.inputs)
    num_bytes = sum(read.num_bytes for read in request.inputs) + CONTINUED_BYTES * going_on
    return num_bytes + answer_bytes * num_answers + 4 * per_row * sum(request.lengths)


def compute_arrays(
    weighing: Weighing,
    layers: Sequence[Layer],
    request: PredictRequest,
    answers: Sequence[Answer],
    without: Mapping[Head, Sequence[Answer]] = NO_ABLATIONS,
) -> list[dict[str, NDArray[Any]]]:
    """Per sequence, the tensors that `lay_out` describes, of this side of a comparison.

    NaN stands for "no row qualifies", and for scores that there are not; both are null in JSON.

    Args:
        weighing: of the bundle that answered, for captures on the host.
        layers: of its model.
        request: with a question about attention.
        answers: with the captures that `captures_for` names.
        without: answers without one head each, for the importance of heads.
    """
    assert request.attention is not None
    question = dataclasses.replace(request.attention, compare=None)
    results = []
    for index, tensors in enumerate(lay_out(question, layers, request.lengths)):
        attended = make_attended(weighing, layers, request, index, answers[index])
        arrays = COMPUTE.get(question.quantity, compute_maps)(attended)
        if "importance" in question.diagnostics:
            arrays |= measure_importance(question, index, answers[index], without)
        assert {name: array.shape for name, array in arrays.items()} == {one.name: one.shape for one in tensors}
        results.append({one.name: _to_array(arrays[one.name]) for one in tensors})
    return results


def _to_array(values: NDArray[Any]) -> NDArray[Any]:
    """Row by row, floating numbers in float32."""
    # Not `ascontiguousarray`, which makes a list of one of a number.
    return np.asarray(values, None if values.dtype.kind == "i" else np.float32, order="C")


def make_attended(
    weighing: Weighing, layers: Sequence[Layer], request: PredictRequest, index: int, answer: Answer
) -> Attended:
    """One sequence of a request, with what was captured of it; arguments as `compute_arrays`."""
    assert request.attention is not None
    values = request.inputs[index].values
    return Attended(
        weighing=weighing if answer.weighing is None else answer.weighing,
        layers=layers,
        question=request.attention,
        index=index,
        length=len(values),
        captures=answer.captures,
        ids=values if values.ndim == 1 else None,
    )


def rows_of(names: Sequence[str]) -> tuple[str, ...]:
    """Diagnostics among `names` that rows of weights are computed for."""
    return tuple(name for name in names if DIAGNOSTICS[name].axis not in ("layer", "ablation"))


def compute_diagnostics(attended: Attended) -> dict[str, NDArray[Any]]:
    """Measures of the heads and layers asked for."""
    question, heads = attended.question, Heads(attended.question)
    names = rows_of(question.diagnostics)
    found: dict[str, NDArray[Any]] = {}
    if names:
        per_layer = [measure_layer(attended, layer, some, names) for layer, some in heads.by_layer.items()]
        found = {
            measure: heads.expand(np.concatenate([measures[measure] for measures in per_layer]))
            for measure in per_layer[0]
        }
    if "head_distance" in found:
        found["head_distance"] = heads.expand_others(found["head_distance"])
    if "collapse" in question.diagnostics:
        kept = np.ones(attended.length, np.bool_)
        if question.special_tokens != "keep":
            kept = ~question.special[attended.index]
        found["collapse"] = heads.expand_layers(
            {layer: np.float32(mean_cosine(attended.find(layer, "hidden")[kept])) for layer in heads.by_layer}
        )
    return found


def measure_layer(
    attended: Attended, layer: int, heads: Sequence[int], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Measures of some heads of a layer, in the order of `names`: by AttentionStatistics as far as it knows them."""
    by_sums = choose_described(names, attended.about) if attended.can_describe else ()
    by_rows = [name for name in names if name not in by_sums]
    found: dict[str, NDArray[np.float32]] = {}
    if by_sums:
        found |= measure_described(attended.describe(layer, heads), by_sums, attended.about)
    if by_rows:
        with_scores = any(DIAGNOSTICS[name].needs_scores for name in by_rows)
        found |= diagnose(attended.weigh(layer, heads, with_scores=with_scores), by_rows, len(heads), attended.about)
    return {measure: found[measure] for name in names for measure in DIAGNOSTICS[name].measures}


def compute_captures(attended: Attended) -> dict[str, NDArray[Any]]:
    """Queries and keys, or metrics, of the heads asked for."""
    question = attended.question
    steps, heads = attended.queries, question.heads
    keys = np.arange(attended.length) if question.keys is None else question.keys[attended.index]
    found: dict[str, NDArray[Any]] = {}
    for index in dict.fromkeys(question.layers):
        layer, prefix = attended.layers[index], f"layers.{index}."
        group = layer.num_heads // layer.num_key_heads
        key_heads = [head // group for head in heads]
        if question.quantity == "metric":
            if "metric" in layer.captures:
                found[f"{prefix}metric"] = attended.capture(index, "metric")[steps][:, key_heads].swapaxes(0, 1)
            continue
        query, key = attended.capture(index, "query")[steps][:, heads], attended.capture(index, "key")[:, key_heads]
        query, key = (np.ascontiguousarray(array.swapaxes(0, 1), np.float32) for array in (query, key))
        found[f"{prefix}query"], found[f"{prefix}key"] = query, key[:, keys]
        first, last = visible_keys(layer, steps, attended.length)
        found[f"{prefix}normaliser"] = attended.weighing.normalise(layer, query, key, first=first, last=last)
        found[f"{prefix}value_norm"] = attended.capture(index, "value_norm")[keys][:, heads].T
    return found


COMPUTE = {
    "diagnostics": compute_diagnostics,
    "rollout": compute_rollout,
    "qk": compute_captures,
    "metric": compute_captures,
}
