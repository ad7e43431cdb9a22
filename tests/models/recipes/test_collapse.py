import numpy as np
import pytest
import torch

from attnserve.models import Transformer, TransformerConfig, layers_of
from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.recipes.collapse import measure_similarity


def new_model() -> Transformer:
    config = TransformerConfig(
        vocabulary_size=5, max_length=6, width=8, num_heads=2, attention=layers_of("dot_product", 2), positions="none"
    )
    return Transformer(config)


def test_similarity_is_the_mean_cosine_of_different_steps() -> None:
    model, sequences = new_model(), [np.array([1, 2, 3]), np.array([4, 0, 4])]
    found = measure_similarity(model, sequences)

    with recorded_outputs(model.layers) as hidden, torch.no_grad():
        model.predict(sequences)
    for similarity, rows in zip(found, hidden, strict=True):
        cosines = [
            torch.cosine_similarity(rows[3 * sequence + a], rows[3 * sequence + b], dim=0).item()
            for sequence in (0, 1)
            for a in range(3)
            for b in range(3)
            if a != b
        ]
        assert similarity == pytest.approx(np.mean(cosines), abs=1e-6)


def test_equal_steps_are_one() -> None:
    assert measure_similarity(new_model(), [np.array([2, 2, 2, 2])]) == pytest.approx([1, 1])
