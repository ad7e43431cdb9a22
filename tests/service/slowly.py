"""Questions about attention answered from their definitions, one number at a time, in float64.

It shares no line with the service: weights come from the formulas of docs/attention.md, the rest from those of
docs/attention-api.md.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnserve.bundle import Layer
from attnserve.service.job import Answer
from attnserve.service.question import Question

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Of one sequence: maps [L, H, N, N], and which keys each row of a layer may see [L, N, N]."""

    weights: np.ndarray
    scores: np.ndarray
    seen: np.ndarray
    norms: np.ndarray
    """[L, N, H]"""
    ids: list[int]

    @property
    def length(self) -> int:
        return len(self.ids)


def find_truth(layers: tuple[Layer, ...], answer: Answer, ids: list[int]) -> Truth:
    scores, weights, seen, norms = [], [], [], []
    for layer in layers:
        query, key = (answer.captures[layer.captures[kind]].astype(float) for kind in ("query", "key"))
        key = np.repeat(key, layer.num_heads // layer.num_key_heads, axis=1)
        z = layer.scale * np.einsum("qhe,khe->hqk", query, key)
        if layer.softcap:
            z = layer.softcap * np.tanh(z / layer.softcap)
        i, j = np.indices(z.shape[1:])
        allowed = np.ones_like(i, bool)
        if layer.causal:
            allowed &= j <= i
        if layer.window:
            allowed &= abs(i - j) < layer.window
        u = np.exp(z) if layer.weighting == "softmax" else z**2 / (1 + z**2)
        u = np.where(allowed, u, 0)
        epsilon = layer.epsilon if layer.weighting == "expressive" else 0
        scores.append(z)
        weights.append(u / (u.sum(-1, keepdims=True) + epsilon))
        seen.append(allowed)
        norms.append(answer.captures[layer.captures["value_norm"]].astype(float))
    return Truth(
        weights=np.array(weights), scores=np.array(scores), seen=np.array(seen), norms=np.array(norms), ids=ids
    )


def drop_special(question: Question, index: int, truth: Truth, layer: int, head: int) -> np.ndarray:
    weights = truth.weights[layer, head].copy()
    if question.special_tokens != "keep":
        weights[:, question.special[index]] = 0
    if question.special_tokens == "drop_renormalise":
        for row in weights:
            if row.sum():
                row /= row.sum()
    return weights


def find_map(question: Question, index: int, truth: Truth, layer: int, head: int) -> list[list[float]]:
    """[rows, columns] of one head, words and queries put together."""
    weights = drop_special(question, index, truth, layer, head)
    length = truth.length
    scores, seen = truth.scores[layer, head], truth.seen[layer]
    cells = {
        "weights": lambda i, j: weights[i, j],
        "signed": lambda i, j: -weights[i, j] if scores[i, j] < 0 else weights[i, j],
        "scores": lambda i, j: scores[i, j] if seen[i, j] else NAN,
        "weighted": lambda i, j: weights[i, j] * truth.norms[layer, j, head],
    }
    if question.quantity == "received":
        queries = question.queries[index].tolist()
        row = []
        for j in range(length):
            values = [weights[i, j] for i in queries if seen[i, j]]
            row.append(sum(values) / len(values) if values else NAN)
        return put_keys_together(question, index, [row])
    cell = cells[question.quantity]
    whole = [[float(cell(i, j)) for j in range(length)] for i in range(length)]
    return put_together(question, index, whole)


def put_together(question: Question, index: int, whole: list[list[float]]) -> list[list[float]]:
    """Rows [N, N] to the rows and columns asked for."""
    rows = [whole[step] for step in question.queries[index].tolist()]
    if question.words is not None:
        of_step = question.words[index].of_step
        by_word: dict[int, list[list[float]]] = {}
        for step in question.queries[index].tolist():
            by_word.setdefault(int(of_step[step]), []).append(whole[step])
        rows = [[sum(column) / len(column) for column in zip(*some, strict=True)] for some in by_word.values()]
    if question.reduce.queries != "none":
        divisor = len(rows) if question.reduce.queries == "mean" else 1
        rows = [[sum(column) / divisor for column in zip(*rows, strict=True)]]
    return put_keys_together(question, index, rows)


def put_keys_together(question: Question, index: int, rows: list[list[float]]) -> list[list[float]]:
    keys = list(range(len(rows[0]))) if question.keys is None else question.keys[index].tolist()
    if question.words is None:
        return [[row[key] for key in keys] for row in rows]
    words = list(dict.fromkeys(int(question.words[index].of_step[key]) for key in keys))
    return [
        [sum(row[key] for key in keys if question.words[index].of_step[key] == word) for word in words] for row in rows
    ]


def find_maps(question: Question, index: int, truth: Truth) -> np.ndarray:
    """[layers, heads, rows, columns] or [pairs, ...]; heads, then layers put together."""
    join = {"mean": np.mean, "max": np.max, "min": np.min}
    reduce = question.reduce
    if question.is_paired:
        pairs = zip(question.layers, question.heads, strict=True)
        # Of pairs that are put together, the same one counts once.
        pairs = dict.fromkeys(pairs) if reduce.heads != "none" else list(pairs)
        maps = np.array([find_map(question, index, truth, layer, head) for layer, head in pairs])
        maps = maps if reduce.heads == "none" else join[reduce.heads](maps, axis=0)
    else:
        layers = question.layers if reduce.layers == "none" else dict.fromkeys(question.layers)
        heads = question.heads if reduce.heads == "none" else dict.fromkeys(question.heads)
        maps = np.array([[find_map(question, index, truth, layer, head) for head in heads] for layer in layers])
        if reduce.heads != "none":
            maps = join[reduce.heads](maps, axis=1)
        if reduce.layers != "none":
            maps = join[reduce.layers](maps, axis=0)
    return maps[..., 0, :] if reduce.queries != "none" or question.quantity == "received" else maps


def find_rollout(question: Question, index: int, truth: Truth) -> np.ndarray:
    """By the product of whole matrices, as in the paper."""
    fuse = {"none": np.mean, "mean": np.mean, "max": np.max, "min": np.min}[question.reduce.heads]
    heads: dict[int, list[int]] = {}
    if question.is_paired:
        for layer, head in zip(question.layers, question.heads, strict=True):
            heads.setdefault(layer, []).append(head)
    else:
        heads = dict.fromkeys(question.layers, question.heads)
    product = np.eye(truth.length)
    for layer in sorted(heads):
        maps = [drop_special(question, index, truth, layer, head) for head in sorted(set(heads[layer]))]
        matrix = fuse(np.array(maps), axis=0) + np.eye(truth.length)
        product = matrix / matrix.sum(-1, keepdims=True) @ product
    found = np.array(put_together(question, index, product.tolist()))
    return found[0] if question.reduce.queries != "none" else found


def measure(question: Question, index: int, truth: Truth, layer: int, head: int) -> dict[str, Any]:
    """The definitions of docs/attention-api.md, one number at a time."""
    weights = drop_special(question, index, truth, layer, head)
    scores, seen, ids = truth.scores[layer, head], truth.seen[layer], truth.ids
    steps = question.queries[index].tolist()
    keys = range(truth.length)
    chosen = keys if question.keys is None else set(question.keys[index].tolist())
    special = question.special[index] if question.special else [False] * truth.length
    bits = {i: -sum(w * math.log2(w) for w in weights[i] if w > 0) for i in steps}
    several = [bits[i] / math.log2(sum(seen[i])) for i in steps if sum(seen[i]) > 1]
    matched = {
        "duplicate_token": lambda i, j: j < i and ids[j] == ids[i],
        "induction": lambda i, j: 0 < j <= i and ids[j - 1] == ids[i],
    }

    def match(name: str) -> float:
        counted = [
            (i, j)
            for i in steps
            for j in keys
            if not (question.exclude_bos and j == 0) and not (question.exclude_current_token and i == j)
        ]
        total = sum(weights[i, j] for i, j in counted)
        return sum(weights[i, j] for i, j in counted if matched[name](i, j)) / total if total else NAN

    received = [[weights[i, j] for i in steps if seen[i, j]] for j in keys]
    return {
        "entropy_bits": mean([bits[i] for i in steps]),
        "entropy_normalised": mean(several),
        "distance": mean([sum(weights[i, j] * abs(i - j) for j in keys) for i in steps]),
        "sink": mean([weights[i, 0] for i in steps]),
        "previous_token": mean([weights[i, i - 1] for i in steps if i > 0]),
        "self": mean([weights[i, i] for i in steps]),
        "mass": mean([sum(weights[i, j] for j in chosen) for i in steps]),
        "special": mean([sum(weights[i, j] for j in keys if special[j]) for i in steps]),
        "negative": mean([sum(weights[i, j] for j in keys if scores[i, j] < 0) for i in steps]),
        "duplicate_token": match("duplicate_token"),
        "induction": match("induction"),
        "received": [mean(values) for values in received],
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else NAN


def mean_cosine(rows: np.ndarray) -> float:
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if i != j
    ]
    return mean(cosines)
