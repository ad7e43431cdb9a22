"""Divergence: how differently two passes attend, row by row, and what they predict.

Jensen-Shannon divergence in bits, from 0 (equal) to 1 (nothing in common): Lin 1991, "Divergence Measures Based on the
Shannon Entropy". It is finite where one of the two is 0, and symmetric.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.attended import Attended
from attnserve.service.heads import Heads
from attnserve.service.question import Reduce
from attnserve.service.rollout import roll_out
from attnserve.weighing import WeightRows

Array = NDArray[Any]


def jensen_shannon(first: Array, second: Array) -> Array:
    """[...] bits between rows [..., K], which are scaled to sums of 1; NaN where a row sums to 0."""
    with np.errstate(invalid="ignore"):
        first, second = (rows / rows.sum(-1, keepdims=True, dtype=np.float64) for rows in (first, second))
    middle = (first + second) / 2
    bits: Array = _entropy(middle) - (_entropy(first) + _entropy(second)) / 2
    # Rounding must not make equal rows differ by less than nothing.
    return np.maximum(bits, 0)


def kullback_leibler(first: Array, second: Array) -> Array:
    """[...] bits of logits [..., W]: what is lost by taking the second prediction for the first."""
    first, second = (_log_softmax(logits) for logits in (first, second))
    bits: Array = np.maximum((np.exp(first) * (first - second)).sum(-1) / np.log(2), 0)
    return bits


def diverge_predictions(first: Array, second: Array) -> Array:
    """[P] bits between the predictions of logits [P, W]."""
    bits: Array = jensen_shannon(*(np.exp(_log_softmax(logits)) for logits in (first, second))).astype(np.float32)
    return bits


def diverge_heads(first: Attended, second: Attended) -> NDArray[np.float32]:
    """Per head asked for, the mean over the queries asked for; NaN if no row of both has weights."""
    # Each head by itself, whatever is put together.
    heads = Heads(dataclasses.replace(first.question, reduce=Reduce()))
    found = []
    for layer, some in heads.by_layer.items():
        total, count = np.zeros(len(some)), np.zeros(len(some))
        for one, other in zip(first.weigh(layer, some), second.weigh(layer, some), strict=True):
            bits = jensen_shannon(_widen(one, first.length), _widen(other, first.length))
            defined = ~np.isnan(bits)
            total += np.where(defined, bits, 0).sum(1)
            count += defined.sum(1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN.
            found.append(total / count)
    return heads.expand(np.concatenate(found)).astype(np.float32)


def diverge_rollouts(first: Attended, second: Attended) -> NDArray[np.float32]:
    """[] the mean over the queries asked for."""
    bits = jensen_shannon(roll_out(first), roll_out(second))
    return np.array(bits.mean(), np.float32)


def _widen(block: WeightRows, num_keys: int) -> Array:
    """[H, Q, N]: two models may let a row see different keys."""
    wide = np.zeros((*block.weights.shape[:2], num_keys), np.float32)
    wide[:, :, block.columns] = block.weights
    return wide


def _entropy(rows: Array) -> Array:
    bits: Array = -(rows * np.log2(np.maximum(rows, np.finfo(np.float64).tiny))).sum(-1)
    return bits


def _log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    logs: Array = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return logs
