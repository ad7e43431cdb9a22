"""What is measured of a model of NT: for the card of a checkpoint, and for the log of a study."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from attnserve.models.recipes.accuracy import (
    FreeRunning,
    Predictor,
    free_running_accuracy,
    greedy,
    right_tokens,
    teacher_forced_accuracy,
)
from attnserve.models.recipes.conditioning import measure_conditioning, observe
from attnserve.models.recipes.recurrence import NT, Mixture
from attnserve.models.transformer import Transformer

NUM_SEQUENCES = 512
"""That accuracy is measured over, and half as many free runs."""
NUM_LONG = 64
"""Sequences longer than any in training."""
MULTIPLES = (2, 4, 8)
"""Of the training length: where it is measured how far a model gets beyond it."""


def mean_over(task: NT | Mixture, measure: Callable[[int, NT], float]) -> float:
    """Mean of a measurement over the delays of a task, which is given the number and the task of each."""
    return float(np.mean([measure(index, part) for index, part in enumerate(task.parts)]))


def measure_accuracy(
    model: Transformer, task: NT | Mixture, generator: np.random.Generator, length: int
) -> dict[str, float | None]:
    """Accuracies on fresh sequences of the training length, of free runs to it, and of tokens beyond it."""
    predict = greedy(model)

    def accuracy(_: int, part: NT) -> float:
        return teacher_forced_accuracy(predict, part, part.sample(generator, NUM_SEQUENCES, length))

    teacher_forced = mean_over(task, accuracy)
    # Every wrong token costs a pass.
    num_starts = NUM_SEQUENCES // 2 if teacher_forced > 0.9 else 16

    def exact(_: int, part: NT) -> float:
        starts = part.sample(generator, num_starts, part.first_scored)
        return free_running_accuracy(predict, part, starts, length).sequences_exact

    columns: dict[str, float | None] = {"accuracy": teacher_forced, "free_running_exact": mean_over(task, exact)}
    return columns | measure_beyond(predict, task, generator, length, model.config.max_length)


def measure_beyond(
    predict: Predictor, task: NT | Mixture, generator: np.random.Generator, length: int, max_length: int
) -> dict[str, float | None]:
    """Accuracy on tokens after the training length: up to twice of it, from there to four times, then to eight."""
    columns: dict[str, float | None] = {}
    for before, multiple in zip((1, *MULTIPLES), MULTIPLES, strict=False):

        def accuracy(_: int, part: NT, before: int = before, multiple: int = multiple) -> float:
            sequences = part.sample(generator, NUM_LONG, multiple * length)
            right = right_tokens(predict, part, sequences)
            return float(right[:, before * length - part.first_scored :].mean())

        is_possible = multiple * length <= max_length
        columns[f"accuracy_to_{multiple}x"] = mean_over(task, accuracy) if is_possible else None
    return columns


def score(
    model: Transformer, task: NT | Mixture, seed: int, *, num_starts: int, progress: bool = False
) -> dict[str, Any]:
    """Everything measured after training, as it stands in the card."""
    generator = np.random.default_rng((seed, 2))
    length, predict = model.config.max_length, greedy(model)
    teacher_forced = mean_over(
        task, lambda _, part: teacher_forced_accuracy(predict, part, part.sample(generator, num_starts, length))
    )
    # Every wrong token costs a pass: a model that failed is scored on fewer starts, in seconds instead of an hour.
    num_free = num_starts if teacher_forced > 0.98 else min(num_starts, 8)
    free: list[FreeRunning] = []
    for part in task.parts:
        starts = part.sample(generator, num_free, part.first_scored)
        free.append(free_running_accuracy(predict, part, starts, length, progress=progress))
    rounding = np.random.default_rng((seed, 3))
    conditioning = measure_conditioning(model, rounding, num_sequences=num_starts)
    whose = f"of {task.first_scored} tokens" + (", and as many of every delay" if len(task.parts) > 1 else "")
    measured: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "teacher_forced_accuracy": teacher_forced,
        "free_running_accuracy": float(np.mean([scores.tokens_right for scores in free])),
        "free_running_sequences_exact": float(np.mean([scores.sequences_exact for scores in free])),
        "free_running_protocol": (
            f"{num_free} uniformly random starts {whose}, each continued greedily to "
            f"{length} tokens; every generated token compared with the recurrence from the start"
        ),
    }
    if isinstance(task, NT):
        measured["lookback"] = measure_lookback(model, task, task.sample(generator, 16, length))
    return measured | {"conditioning": dataclasses.asdict(conditioning)}


def measure_lookback(model: Transformer, task: NT, sequences: Int[np.ndarray, "S N"]) -> list[dict[str, Any]]:
    """Mean attention weight on the key `delay - 1` steps back, the other term of the sum, per layer and head."""
    maps = [observe(model, tokens).weights for tokens in sequences]
    means = [
        torch.stack([weights.diagonal(1 - task.delay, dim1=1, dim2=2).mean(-1) for weights in layer]).mean(0)
        for layer in zip(*maps, strict=True)
    ]
    return [
        {"layer": layer, "head": head, "mean_weight": round(weight, 4)}
        for layer, heads in enumerate(means)
        for head, weight in enumerate(heads.tolist())
    ]
