"""Conditioning: how far rounding to float32 moves a model's logits and attention weights.

Expressive weights are ratios of scores near zero and amplify rounding, so a trained model has to be measured: whoever
re-computes it in another order of operations can agree no better than it agrees with itself.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnserve.models.attention.layer import Attention
from attnserve.models.attention.packed import allowed_keys, attend, attention_scores, gather_steps
from attnserve.models.attention.variant import Weigh
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
    weights: list[Tensor] = []
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    originals = [attention.attend for attention in attentions]
    # `attend` is the seam the exporter takes hold of too: query and key arrive with metric and rotation folded in.
    for attention, original in zip(attentions, originals, strict=True):
        attention.attend = partial(_record, weights, original)
    try:
        packed = pack([tokens])
        arrays = (torch.from_numpy(array) for array in (packed.tokens, packed.positions, packed.slots))
        logits = model(*arrays, torch.arange(len(tokens))).logits
    finally:
        for attention, original in zip(attentions, originals, strict=True):
            attention.attend = original
    return Observation(logits=logits, weights=weights)


def _record(
    weights: list[Tensor],
    original: Callable[..., Tensor],
    query: Float[Tensor, "T H E"],
    key: Float[Tensor, "T K E"],
    value: Float[Tensor, "T K V"],
    slots: Int[Tensor, "B N"],
) -> Float[Tensor, "T H V"]:
    assert isinstance(original, partial)
    assert original.func is attend, "the weights are recomputed from the options of `attend`"
    options = original.keywords
    weigh: Weigh = original.args[0]
    scores = attention_scores(
        gather_steps(query, slots), gather_steps(key, slots), scale=options["scale"], softcap=options["softcap"]
    )
    allowed = allowed_keys(slots, len(query), causal=options["causal"], window=options["window"])
    weights.append(weigh(scores, allowed, epsilon=options["epsilon"])[0])
    attended: Tensor = original(query, key, value, slots)
    return attended
