from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.recipes.accuracy import (
    continue_greedily,
    free_running_accuracy,
    greedy,
    teacher_forced_accuracy,
)
from attnserve.models.recipes.recurrence import NT

TASK = NT(symbols=5, delay=3)
Tokens = NDArray[np.int64]


def perfect(tokens: Tokens) -> Tokens:
    earlier = np.zeros_like(tokens)
    earlier[:, TASK.delay - 1 :] = tokens[:, : tokens.shape[1] - TASK.delay + 1]
    return (tokens + earlier) % TASK.symbols


def wrong_at(*steps: int) -> Callable[[Tokens], Tokens]:
    """Right about everything but the token of these steps."""

    def predict(tokens: Tokens) -> Tokens:
        predicted = perfect(tokens)
        for step in steps:
            if step <= predicted.shape[1]:
                predicted[:, step - 1] = (predicted[:, step - 1] + 1) % TASK.symbols
        return predicted

    return predict


def sample(num_sequences: int, length: int, seed: int = 0) -> Tokens:
    return TASK.sample(np.random.default_rng(seed), num_sequences, length)


def test_a_perfect_predictor_scores_one() -> None:
    assert teacher_forced_accuracy(perfect, TASK, sample(4, 20)) == 1
    scores = free_running_accuracy(perfect, TASK, sample(4, 3), 20)
    assert (scores.tokens_right, scores.sequences_exact) == (1, 1)


def test_what_cannot_be_predicted_is_not_scored() -> None:
    assert teacher_forced_accuracy(wrong_at(1, 2), TASK, sample(4, 20)) == 1
    assert teacher_forced_accuracy(wrong_at(3), TASK, sample(4, 20)) == 16 / 17


def test_free_running_goes_on_from_its_own_errors() -> None:
    starts = sample(6, 3)
    assert free_running_accuracy(wrong_at(19), TASK, starts, 20).tokens_right == 16 / 17

    early = free_running_accuracy(wrong_at(4), TASK, starts, 20)
    assert early.sequences_exact == 0
    assert early.tokens_right < teacher_forced_accuracy(wrong_at(4), TASK, sample(6, 20))


def test_sequences_are_exact_one_by_one() -> None:
    starts = np.array([[0, 0, 0], [0, 0, 1]])

    def never_zero(tokens: Tokens) -> Tokens:
        return np.where(tokens.any(axis=1, keepdims=True), perfect(tokens), 1)

    scores = free_running_accuracy(never_zero, TASK, starts, 10)
    assert scores.sequences_exact == 0.5
    assert 0.5 <= scores.tokens_right < 1


@pytest.mark.parametrize("steps", [(), (4,), (5, 6, 7), (3, 11, 19)])
def test_few_passes_generate_what_token_by_token_does(steps: tuple[int, ...]) -> None:
    predict, starts = wrong_at(*steps), sample(5, 3, seed=2)
    tokens = starts
    while tokens.shape[1] < 20:
        tokens = np.concatenate([tokens, predict(tokens)[:, -1:]], axis=1)

    passes = []

    def counting(given: Tokens) -> Tokens:
        passes.append(len(given))
        return predict(given)

    np.testing.assert_array_equal(continue_greedily(counting, TASK, starts, 20), tokens)
    assert len(passes) <= 1 + len(steps)


def test_an_untrained_model_generates_what_token_by_token_does() -> None:
    config = TransformerConfig(
        vocabulary_size=5, max_length=12, width=8, num_heads=2, attention=(AttentionConfig(variant="expressive"),)
    )
    predict = greedy(Transformer(config, seed=1), max_tokens=24)
    starts = sample(5, 3)
    tokens = starts
    while tokens.shape[1] < 12:
        tokens = np.concatenate([tokens, predict(tokens)[:, -1:]], axis=1)

    np.testing.assert_array_equal(continue_greedily(predict, TASK, starts, 12), tokens)
