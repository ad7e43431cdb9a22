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

MAX_LAYERS = 4
"""Columns of similarities: a log has the same ones for every model."""


def name_similarity(layer: int) -> str:
    """The column of a log for what is measured after a layer, counted from 1."""
    return f"similarity_{layer}"


def similarity_columns(model: Transformer, sequences: Sequence[NDArray[Any]]) -> dict[str, float | None]:
    """`measure_similarity` as columns of a log: None for layers that the model does not have."""
    similarities = measure_similarity(model, sequences)
    return {
        name_similarity(layer + 1): similarities[layer] if layer < len(similarities) else None
        for layer in range(MAX_LAYERS)
    }


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
