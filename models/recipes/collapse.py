"""Representation collapse: how alike the steps of a sequence become from layer to layer.

Measured as in Nielsen et al., "Elliptical Attention", arXiv 2406.13770: the cosine of every two steps of a sequence in
the residual stream, averaged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional

from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.transformer import Transformer


@torch.no_grad()
def measure_similarity(model: Transformer, sequences: Sequence[NDArray[Any]]) -> list[float]:
    """Mean cosine of two different steps of a sequence, after each layer; sequences of one length, at least 2."""
    with recorded_outputs(model.layers) as hidden:
        model.predict(sequences)
    similarities = []
    for rows in hidden:
        steps = functional.normalize(rows.view(len(sequences), -1, rows.shape[-1]).double(), dim=-1)
        num_steps = steps.shape[1]
        # All pairs are the square of the sum; the num_steps pairs of a step with itself are 1 each.
        pairs = steps.sum(1).square().sum(-1) - num_steps
        similarities.append(float((pairs / (num_steps * (num_steps - 1))).mean()))
    return similarities
