"""Recipe `nt`: train a model on the recurrence NT(symbols, delay), score it, and save it with its card.

`attnserve train nt --variant expressive --symbols 8 --delay 16 --out FOLDER`; the defaults learn that in about half a
minute of one core. `checkpoints/train.sh` holds the commands of the committed checkpoints.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.accuracy import greedy, teacher_forced_accuracy
from attnserve.models.recipes.nt_scores import mean_over, measure_accuracy, score
from attnserve.models.recipes.options import (
    add_model_options,
    add_optimizer_options,
    add_watch_options,
    build_model,
    check_counts,
    settings_of,
    shape_of,
    watch_of,
)
from attnserve.models.recipes.recurrence import NT, Lengths, Mixture, batches
from attnserve.models.recipes.runs import Trained, add_run_options, command_of, save_run, train_as_asked, versions
from attnserve.models.recipes.summary import Measure
from attnserve.models.recipes.training import TrainingSettings
from attnserve.models.transformer import Transformer

SUMMARY = "x(t) = x(t-1) + x(t-delay) mod symbols, one next token at a time"
TASK = "NT(symbols, delay)"
COMPARED = {
    "expressive": "--variant expressive",
    "dot-product": "--variant dot_product",
    "dot-product, gain 2": "--variant dot_product --gain 2",
}
STEPS = 1200
QUICK = {"score_every": 50, "stop_at": 0.999}
LESSON = (
    "A gain of 2 is the same attention at half the temperature: where it learns too, expressive attention is less "
    "sensitive to the scale of its scores, not more capable."
)
SOLVED = 0.995
"""Accuracy at which the task counts as learnt."""
MEASURES = (
    Measure(header="accuracy, %", column="accuracy", kind="outcome"),
    Measure(header="free runs exact, %", column="free_running_exact", kind="outcome"),
    Measure(header="steps to 99.5 %", column="steps_to_solved", kind="steps"),
    Measure(header="CPU s", column="cpu_seconds", kind="seconds"),
)
NUM_WATCHED = 128
"""Sequences of the scores on the way."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `attnserve train nt`."""
    task = parser.add_argument_group("task")
    task.add_argument("--symbols", type=int, default=8, help="number of symbols (default: %(default)s)")
    task.add_argument("--delay", type=int, default=16, help="how far back the recurrence reads (default: %(default)s)")
    task.add_argument(
        "--delays", nargs="+", type=int, metavar="N", help="several: every sequence has one (default: --delay for all)"
    )

    add_model_options(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--seed", type=int, default=0, help="of weights, data and scores (default: %(default)s)")
    training.add_argument("--batch", type=int, default=32, help="sequences per step, at most (default: %(default)s)")
    training.add_argument(
        "--max-tokens", type=int, default=4096, help="tokens per step, at most (default: %(default)s)"
    )
    training.add_argument(
        "--length",
        type=int,
        help="longest training sequence (default: the shortest, 2 * delay + 2, or 4 times the longest of --delays)",
    )
    training.add_argument("--max-length", type=int, help="longest sequence the model takes (default: --length)")
    training.add_argument(
        "--curriculum",
        type=int,
        default=0,
        help="steps over which the longest length grows from the shortest to --length (default: %(default)s)",
    )
    add_optimizer_options(training, steps=STEPS)
    add_watch_options(training, score="the accuracy on sequences of their own")
    training.add_argument(
        "--starts", type=int, default=200, help="random starts, and sequences, scored (default: %(default)s)"
    )
    add_run_options(training)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model and what it was trained on."""

    model: Transformer
    task: NT | Mixture
    lengths: Lengths
    settings: TrainingSettings
    trained: Trained


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    fitted = fit(arguments)
    card = describe_run(arguments, fitted) | score(
        fitted.model, fitted.task, arguments.seed, num_starts=arguments.starts, progress=not arguments.quiet
    )
    for field in ("teacher_forced_accuracy", "free_running_accuracy", "free_running_sequences_exact"):
        print(f"{field.replace('_', ' ')}: {card[field]:.6f}")
    print(f"free running: {card['free_running_protocol']}")
    save_run(fitted.model, arguments.out, card)
    return 0


def fit(arguments: argparse.Namespace) -> Fitted:
    """Train a model as the options say.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch", "max_tokens", "starts")
    task = task_of(arguments)
    lengths = lengths_of(arguments, task)
    settings = settings_of(arguments, steps=STEPS)
    model = build_model(config_of(arguments, task, lengths), arguments)
    # Streams 0, 1, ... of one seed: weights, training data, scores, conditioning, scores on the way. Adding one
    # disturbs no other.
    data = np.random.default_rng((arguments.seed, 1))
    validation = np.random.default_rng((arguments.seed, 4))
    watched = [part.sample(validation, NUM_WATCHED, lengths.longest) for part in task.parts]
    predict = greedy(model)
    watch = watch_of(
        arguments,
        lambda: mean_over(task, lambda index, part: teacher_forced_accuracy(predict, part, watched[index])),
    )
    trained = train_as_asked(
        model, batches(task, lengths, data), settings, arguments, watch=watch, command=command(arguments)
    )
    return Fitted(model=model, task=task, lengths=lengths, settings=settings, trained=trained)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and measure what stands in the log: a value per column, None where there is none."""
    fitted = fit(arguments)
    generator = np.random.default_rng((arguments.seed, 2))
    return {
        **measure_accuracy(fitted.model, fitted.task, generator, fitted.lengths.longest),
        "steps": fitted.trained.num_steps,
        "steps_to_solved": fitted.trained.history.first_step_at(SOLVED),
        "cpu_seconds": round(fitted.trained.cpu_seconds, 1),
    }


def task_of(arguments: argparse.Namespace) -> NT | Mixture:
    """The task, from the options."""
    if arguments.delays is not None:
        return Mixture(symbols=arguments.symbols, delays=tuple(arguments.delays))
    return NT(symbols=arguments.symbols, delay=arguments.delay)


def lengths_of(arguments: argparse.Namespace, task: NT | Mixture) -> Lengths:
    """The lengths to train on, from the options."""
    shortest = 2 * task.delay + 2 if len(task.parts) == 1 else 4 * task.delay
    longest = shortest if arguments.length is None else arguments.length
    if longest < task.first_scored:
        raise ValueError(
            f"length: nothing can be predicted in less than {task.first_scored} steps with these delays, got {longest}"
        )
    return Lengths(
        shortest=min(shortest, longest),
        longest=longest,
        curriculum=arguments.curriculum,
        batch=arguments.batch,
        max_tokens=arguments.max_tokens,
    )


def config_of(arguments: argparse.Namespace, task: NT | Mixture, lengths: Lengths) -> TransformerConfig:
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


def describe_run(arguments: argparse.Namespace, fitted: Fitted) -> dict[str, Any]:
    """What was trained and how, as it stands in the card."""
    task, settings = fitted.task, fitted.settings
    delays = " or ".join(str(part.delay) for part in task.parts)
    delay = task.delay if len(task.parts) == 1 else [part.delay for part in task.parts]
    return {
        "description": (
            f"{arguments.variant.replace('_', '-')} attention trained on x(t) = [x(t-1) + x(t-{delays})] mod "
            f"{task.symbols}: the first {task.delay} tokens are free, all others follow"
        ),
        "recipe": "nt",
        "symbols": task.symbols,
        "delay": delay,
        "variant": arguments.variant,
        "command": command(arguments),
        "seed": arguments.seed,
        "optimizer": f"{settings.optimizer}, rate {settings.lr}",
        "steps": fitted.trained.num_steps,
        "lengths": [fitted.lengths.shortest, fitted.lengths.longest],
        "trained_with": versions(),
    }


def command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    return command_of("nt", add_arguments, arguments, named=("variant", "symbols", "delay", "seed"))
