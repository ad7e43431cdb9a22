"""Recipe `nt`: train a model on the recurrence NT(symbols, delay), score it, and save it with its card.

`attnserve train nt --variant expressive --symbols 8 --delay 16 --out FOLDER`; the defaults learn that in about half a
minute of one core. `checkpoints/train.sh` holds the commands of the committed checkpoints.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch

from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.accuracy import free_running_accuracy, greedy, teacher_forced_accuracy
from attnserve.models.recipes.conditioning import measure_conditioning, observe
from attnserve.models.recipes.options import (
    add_model_options,
    add_optimizer_options,
    add_run_options,
    check_counts,
    check_folder,
    command_of,
    save_run,
    settings_of,
    shape_of,
    versions,
)
from attnserve.models.recipes.recurrence import NT, Lengths, batches
from attnserve.models.recipes.training import TrainingSettings, train
from attnserve.models.threads import num_threads
from attnserve.models.transformer import Transformer

SUMMARY = "x(t) = x(t-1) + x(t-delay) mod symbols, one next token at a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `attnserve train nt`."""
    task = parser.add_argument_group("task")
    task.add_argument("--symbols", type=int, default=8, help="number of symbols (default: %(default)s)")
    task.add_argument("--delay", type=int, default=16, help="how far back the recurrence reads (default: %(default)s)")

    add_model_options(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--seed", type=int, default=0, help="of weights, data and scores (default: %(default)s)")
    training.add_argument("--steps", type=int, default=1200, help="optimiser steps (default: %(default)s)")
    training.add_argument("--batch", type=int, default=32, help="sequences per step, at most (default: %(default)s)")
    training.add_argument(
        "--max-tokens", type=int, default=4096, help="tokens per step, at most (default: %(default)s)"
    )
    training.add_argument("--length", type=int, help="longest training sequence (default: 2 * delay + 2, the shortest)")
    training.add_argument("--max-length", type=int, help="longest sequence the model takes (default: --length)")
    training.add_argument(
        "--curriculum",
        type=int,
        default=0,
        help="steps over which the longest length grows from 2 * delay + 2 to --length (default: %(default)s)",
    )
    add_optimizer_options(training)
    training.add_argument(
        "--starts", type=int, default=200, help="random starts, and sequences, scored (default: %(default)s)"
    )
    add_run_options(training)


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch", "max_tokens", "starts")
    task = NT(symbols=arguments.symbols, delay=arguments.delay)
    lengths = lengths_of(arguments)
    settings = settings_of(arguments)
    model = Transformer(config_of(arguments, task, lengths), seed=arguments.seed)
    # Before minutes of training, not after.
    check_folder(arguments.out)
    with num_threads(arguments.threads):
        # Streams 0, 1, ... of one seed: weights, training data, scores, conditioning. Adding one disturbs no other.
        data = np.random.default_rng((arguments.seed, 1))
        train(model, batches(task, lengths, data), settings, progress=not arguments.quiet)
        card = describe_run(arguments, task, lengths, settings) | score(model, task, arguments)
    for field in ("teacher_forced_accuracy", "free_running_accuracy", "free_running_sequences_exact"):
        print(f"{field.replace('_', ' ')}: {card[field]:.6f}")
    print(f"free running: {card['free_running_protocol']}")
    save_run(model, arguments.out, card)
    return 0


def lengths_of(arguments: argparse.Namespace) -> Lengths:
    """The lengths to train on, from the options."""
    shortest = 2 * arguments.delay + 2
    longest = shortest if arguments.length is None else arguments.length
    if longest < arguments.delay:
        raise ValueError(
            f"length: nothing can be predicted in less than --delay {arguments.delay} steps, got {longest}"
        )
    return Lengths(
        shortest=min(shortest, longest),
        longest=longest,
        curriculum=arguments.curriculum,
        batch=arguments.batch,
        max_tokens=arguments.max_tokens,
    )


def config_of(arguments: argparse.Namespace, task: NT, lengths: Lengths) -> TransformerConfig:
    """The model to train, from the options."""
    max_length = lengths.longest if arguments.max_length is None else arguments.max_length
    if max_length < lengths.longest:
        raise ValueError(f"max_length: expected at least the training length {lengths.longest}, got {max_length}")
    return TransformerConfig(
        vocabulary_size=task.symbols,
        max_length=max_length,
        **shape_of(arguments, causal=True),
        labels=task.labels,
    )


def score(model: Transformer, task: NT, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything measured after training, as it stands in the card."""
    generator = np.random.default_rng((arguments.seed, 2))
    length, predict = model.config.max_length, greedy(model)
    teacher_forced = teacher_forced_accuracy(predict, task, task.sample(generator, arguments.starts, length))
    # Every wrong token costs a pass: a model that failed is scored on fewer starts, in seconds instead of an hour.
    num_starts = arguments.starts if teacher_forced > 0.98 else min(arguments.starts, 8)
    starts = task.sample(generator, num_starts, task.delay)
    free = free_running_accuracy(predict, task, starts, length, progress=not arguments.quiet)
    rounding = np.random.default_rng((arguments.seed, 3))
    conditioning = measure_conditioning(model, rounding, num_sequences=arguments.starts)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "teacher_forced_accuracy": teacher_forced,
        "free_running_accuracy": free.tokens_right,
        "free_running_sequences_exact": free.sequences_exact,
        "free_running_protocol": (
            f"{num_starts} uniformly random starts of {task.delay} tokens, each continued greedily to "
            f"{length} tokens; every generated token compared with the recurrence from the start"
        ),
        "lookback": measure_lookback(model, task, task.sample(generator, 16, length)),
        "conditioning": dataclasses.asdict(conditioning),
    }


def measure_lookback(
    model: Transformer, task: NT, sequences: np.ndarray[Any, np.dtype[np.int64]]
) -> list[dict[str, Any]]:
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


def describe_run(
    arguments: argparse.Namespace, task: NT, lengths: Lengths, settings: TrainingSettings
) -> dict[str, Any]:
    """What was trained and how, as it stands in the card."""
    return {
        "description": (
            f"{arguments.variant.replace('_', '-')} attention trained on x(t) = [x(t-1) + x(t-{task.delay})] mod "
            f"{task.symbols}: the first {task.delay} tokens are free, all others follow"
        ),
        "recipe": "nt",
        "symbols": task.symbols,
        "delay": task.delay,
        "variant": arguments.variant,
        "command": command_of("nt", add_arguments, arguments, named=("variant", "symbols", "delay", "seed")),
        "seed": arguments.seed,
        "optimizer": f"{settings.optimizer}, rate {settings.lr}",
        "steps": settings.steps,
        "lengths": [lengths.shortest, lengths.longest],
        "trained_with": versions(),
    }
