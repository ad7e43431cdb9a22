"""Conditioning: how far rounding to float32 moves a model's logits and attention weights.

Expressive weights are ratios of scores near zero and amplify rounding, so a trained model has to be measured: whoever
re-computes it in another order of operations can agree no better than it agrees with itself.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from attnserve.models.attention.recording import recorded_weights
from attnserve.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Float32 against float64, over sequences."""

    num_sequences: int
    max_length: int
    """No sequence is longer."""
    logits: float
    """Largest difference of a logit, divided by the largest |logit| of all sequences."""
    weights: float
    """Largest difference of an attention weight, over all layers and heads."""


def measure_conditioning(
    model: Transformer, generator: np.random.Generator, *, num_sequences: int = 200, max_length: int | None = None
) -> Conditioning:
    """`conditioning_over` uniformly random ids, of random lengths: uniform in 1..max_length."""
    size, longest = model.config.vocabulary_size, model.config.max_length if max_length is None else max_length
    assert size is not None, "features have no distribution of their own: give sequences"
    lengths = generator.integers(1, longest + 1, num_sequences)
    conditioning = conditioning_over(model, [generator.integers(size, size=length) for length in lengths])
    return dataclasses.replace(conditioning, max_length=longest)


@torch.no_grad()
def conditioning_over(model: Transformer, sequences: Sequence[NDArray[Any]]) -> Conditioning:
    """Run `model` and its float64 copy on the same sequences (ids or features), one at a time."""
    exact = copy.deepcopy(model).double()
    peak, logits, weights = 0.0, 0.0, 0.0
    for sequence in sequences:
        rounded, true = observe(model, sequence), observe(exact, sequence)
        peak = max(peak, true.logits.abs().max().item())
        logits = max(logits, (rounded.logits.double() - true.logits).abs().max().item())
        for mine, theirs in zip(rounded.weights, true.weights, strict=True):
            weights = max(weights, (mine.double() - theirs).abs().max().item())
    longest = max(len(sequence) for sequence in sequences)
    return Conditioning(num_sequences=len(sequences), max_length=longest, logits=logits / peak, weights=weights)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The answer to one sequence, and what every head looked at."""

    logits: Float[Tensor, "R W"]
    """Of every step; of task classify_sequence one row."""
    weights: list[Float[Tensor, "H N N"]]
    """One per layer; queries, then keys."""


@torch.no_grad()
def observe(model: Transformer, sequence: NDArray[Any]) -> Observation:
    """Run one sequence of ids or features and keep its attention weights."""
    with recorded_weights(model) as weights:
        (logits,) = model.predict([sequence])
    return Observation(logits=logits, weights=[layer[0] for layer in weights])
