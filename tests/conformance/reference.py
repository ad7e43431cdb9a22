"""The formulas once more, one query at a time, in plain loops: shares no code with what it checks.

A new weighting needs its formula here, in `WEIGHTINGS`; nothing independent can come by itself.
"""

import math
from collections.abc import Callable

import numpy as np

from tests.conformance.cases import Array, AttentionCase, MetricCase, segments_of


def softmax_row(scores: list[float], epsilon: float) -> list[float]:
    largest = max(scores)
    exponentials = [math.exp(score - largest) for score in scores]
    return [exponential / math.fsum(exponentials) for exponential in exponentials]


def expressive_row(scores: list[float], epsilon: float) -> list[float]:
    similarities = [score * score / (1 + score * score) for score in scores]
    total = epsilon + math.fsum(similarities)
    return [similarity / total if total > 0 else 0.0 for similarity in similarities]


WEIGHTINGS: dict[str, Callable[[list[float], float], list[float]]] = {
    "softmax": softmax_row,
    "expressive": expressive_row,
}


def weigh_row(weighting: str, scores: list[float], epsilon: float) -> list[float]:
    if weighting not in WEIGHTINGS:
        raise NotImplementedError(f"{weighting}: write its formula for one row of scores in {__file__}")
    return WEIGHTINGS[weighting](scores, epsilon)


def keys_seen(query: int, length: int, *, causal: bool, window: int) -> list[int]:
    """The steps a query sees in a sequence of `length` steps."""
    first = max(0, query - window + 1) if window else 0
    last = query if causal else (min(length - 1, query + window - 1) if window else length - 1)
    return list(range(first, last + 1))


def weights_of(case: AttentionCase, weighting: str) -> list[Array]:
    """Weights [H, n, n] of every sequence."""
    group = case.query.shape[1] // case.key.shape[1]
    maps = []
    for segment, length in zip(segments_of(case.lengths), case.lengths, strict=True):
        query, key = case.query[segment], case.key[segment]
        weights = np.zeros((query.shape[1], length, length))
        for head in range(query.shape[1]):
            for step in range(length):
                seen = keys_seen(step, length, causal=case.causal, window=case.window)
                scores = [
                    case.scale
                    * math.fsum(query[step, head, e] * key[other, head // group, e] for e in range(key.shape[2]))
                    for other in seen
                ]
                if case.softcap:
                    scores = [case.softcap * math.tanh(score / case.softcap) for score in scores]
                weights[head, step, seen] = weigh_row(weighting, scores, case.epsilon)
        maps.append(weights)
    return maps


def attend(case: AttentionCase, weighting: str) -> Array:
    """Output [T, H, V]."""
    group = case.query.shape[1] // case.key.shape[1]
    output = np.zeros((*case.query.shape[:2], case.value.shape[2]))
    for segment, weights in zip(segments_of(case.lengths), weights_of(case, weighting), strict=True):
        for head in range(weights.shape[0]):
            output[segment, head] = weights[head] @ case.value[segment, head // group]
    return output


def metric(case: MetricCase) -> Array:
    """Metric [T, K, E]."""
    result = np.zeros_like(case.value)
    for segment, length in zip(segments_of(case.lengths), case.lengths, strict=True):
        change = abs(case.value[segment] - case.previous_value[segment])
        for step in range(length):
            steps = range(step + 1) if case.scope == "prefix" else range(length)
            for head in range(change.shape[1]):
                total = sum(change[other, head] for other in steps)
                norm = total.max() if case.scaling == "max" else total.mean()
                result[segment.start + step, head] = total / norm if norm > 0 else 1.0
    return result
