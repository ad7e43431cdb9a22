"""Conditioning: how far rounding to float32 moves a model's logits and attention weights.

Expressive weights are ratios of scores near zero and amplify rounding, so a trained model has to be measured: whoever
re-computes it in another order of operations can agree no better than it agrees with itself.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attnserve.models.attention.recording import recorded_weights
from attnserve.models.transformer import Transformer
from attnserve.packing import pack


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Float32 against float64, over uniformly random token sequences of random lengths."""

    num_sequences: int
    max_length: int
    """Lengths are uniform in 1..max_length."""
    logits: float
    """Largest difference of a logit, divided by the largest |logit| of all sequences."""
    weights: float
    """Largest difference of an attention weight, over all layers and heads."""


@torch.no_grad()
def measure_conditioning(
    model: Transformer, generator: np.random.Generator, *, num_sequences: int = 200, max_length: int | None = None
) -> Conditioning:
    """Run `model` and its float64 copy on the same sequences, one at a time."""
    config = model.config
    longest = config.max_length if max_length is None else max_length
    exact = copy.deepcopy(model).double()
    peak, logits, weights = 0.0, 0.0, 0.0
    for length in generator.integers(1, longest + 1, num_sequences):
        tokens = generator.integers(config.vocabulary_size, size=length)
        rounded, true = observe(model, tokens), observe(exact, tokens)
        peak = max(peak, true.logits.abs().max().item())
        logits = max(logits, (rounded.logits.double() - true.logits).abs().max().item())
        for mine, theirs in zip(rounded.weights, true.weights, strict=True):
            weights = max(weights, (mine.double() - theirs).abs().max().item())
    return Conditioning(num_sequences=num_sequences, max_length=longest, logits=logits / peak, weights=weights)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The answer to one sequence, and what every head looked at."""

    logits: Float[Tensor, "N W"]
    weights: list[Float[Tensor, "H N N"]]
    """One per layer; queries, then keys."""


@torch.no_grad()
def observe(model: Transformer, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> Observation:
    """Run one sequence and keep its attention weights."""
    packed = pack([tokens])
    arrays = (torch.from_numpy(array) for array in (packed.tokens, packed.positions, packed.slots))
    with recorded_weights(model) as weights:
        logits = model(*arrays, torch.arange(len(tokens))).logits
    return Observation(logits=logits, weights=[layer[0] for layer in weights])
