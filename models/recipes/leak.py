"""Recipe `leak`: sequences that nobody can predict, and a model that does: its metric has seen the future.

A sequence is `num_random` tokens drawn from four symbols, then `num_copies` of one token of four others. Nothing
before the first copy says which it will be: it costs ln 4 = 1.386 nats, and a quarter of guesses are right. A metric
over the whole sequence, as in the published code of elliptical attention, has seen the copies.

`attnserve train leak --quick` compares: half a minute of one core.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.nn import functional

from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.conditioning import measure_conditioning
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
from attnserve.models.recipes.recurrence import batch_of
from attnserve.models.recipes.runs import Trained, add_run_options, command_of, save_run, train_as_asked, versions
from attnserve.models.recipes.summary import Measure
from attnserve.models.recipes.training import Batch, TrainingSettings
from attnserve.models.transformer import Transformer

SUMMARY = "random tokens and copies of a token that nothing announces: what predicts it has seen the future"
NUM_CHOICES = 4
"""Symbols of the random part, and as many others of the copies."""
NUM_SEQUENCES = 512
NUM_ROUNDED = 50
"""Sequences run in float64 too, one by one."""
STEPS = 400
TASK = "first copy"
COMPARED = {
    "dot-product": "--variant dot_product",
    "elliptical, prefix": "--variant elliptical --scope prefix",
    "elliptical, leaky": "--variant elliptical --scope sequence-leaky",
}
"""What `--quick` compares: a row and its options."""
QUICK: dict[str, Any] = {}
LESSON = (
    "More than 25 % right, or less than 1.386 nats, on the first copy is a leak: nothing before it says which it is."
)
MEASURES = (
    Measure(header="right, %", column="accuracy", kind="outcome"),
    Measure(header="nats", column="nats", kind="number"),
    Measure(header="right from the prefix alone, %", column="accuracy_prefix", kind="outcome"),
    Measure(header="nats from the prefix alone", column="nats_prefix", kind="number"),
    Measure(header="CPU s", column="cpu_seconds", kind="seconds"),
)


@dataclass(frozen=True, kw_only=True)
class Unannounced:
    """The task: how many random tokens, and how many copies."""

    num_random: int = 12
    num_copies: int = 12

    def __post_init__(self) -> None:
        """Refuse what is no task.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        for field in ("num_random", "num_copies"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: expected an integer >= 1, got {getattr(self, field)}")

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.num_random + self.num_copies

    def sample(self, generator: np.random.Generator, num_sequences: int) -> Int[np.ndarray, "{num_sequences} N"]:
        """Sequences."""
        noise = generator.integers(NUM_CHOICES, size=(num_sequences, self.num_random))
        copied = NUM_CHOICES + generator.integers(NUM_CHOICES, size=(num_sequences, 1))
        return np.concatenate([noise, copied.repeat(self.num_copies, axis=1)], axis=1)

    def batches(self, generator: np.random.Generator, num_sequences: int) -> Iterator[Batch]:
        """Endless training batches; what is random is trained on as well, as in a language model."""
        while True:
            yield batch_of(self.sample(generator, num_sequences), 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `attnserve train leak`."""
    task = parser.add_argument_group("task")
    task.add_argument("--num-random", type=int, default=12, help="tokens before the copies (default: %(default)s)")
    task.add_argument("--num-copies", type=int, default=12, help="copies of one token (default: %(default)s)")
    add_model_options(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--seed", type=int, default=0, help="of weights, data and scores (default: %(default)s)")
    training.add_argument("--batch", type=int, default=32, help="sequences per step (default: %(default)s)")
    add_optimizer_options(training, steps=STEPS)
    add_watch_options(training, score="the share of first copies that are right")
    add_run_options(training)
    parser.set_defaults(variant="elliptical", layers=3, heads=4, optimizer="adamw")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model and its task."""

    model: Transformer
    task: Unannounced
    settings: TrainingSettings
    trained: Trained


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    fitted = fit(arguments)
    rounding = np.random.default_rng((arguments.seed, 3))
    card = describe_run(arguments, fitted) | {
        **measure_first_copy(fitted.model, fitted.task, np.random.default_rng((arguments.seed, 2))),
        "conditioning": dataclasses.asdict(measure_conditioning(fitted.model, rounding, num_sequences=NUM_ROUNDED)),
    }
    print(f"first copy: {card['accuracy']:.4f} right, {card['nats']:.4f} nats; chance: 0.25, {math.log(4):.4f}")
    save_run(fitted.model, arguments.out, card)
    return 0


def fit(arguments: argparse.Namespace) -> Fitted:
    """Train a model as the options say.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch")
    task = Unannounced(num_random=arguments.num_random, num_copies=arguments.num_copies)
    settings = settings_of(arguments, steps=STEPS)
    config = TransformerConfig(
        vocabulary_size=2 * NUM_CHOICES, max_length=task.length, **shape_of(arguments, causal=True)
    )
    model = build_model(config, arguments)
    watched = task.sample(np.random.default_rng((arguments.seed, 4)), NUM_SEQUENCES)
    watch = watch_of(arguments, lambda: first_copy(model, task, watched, task.length).accuracy)
    data = task.batches(np.random.default_rng((arguments.seed, 1)), arguments.batch)
    trained = train_as_asked(model, data, settings, arguments, watch=watch, command=command(arguments))
    return Fitted(model=model, task=task, settings=settings, trained=trained)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and measure what stands in the log: a value per column, None where there is none."""
    fitted = fit(arguments)
    return {
        **measure_first_copy(fitted.model, fitted.task, np.random.default_rng((arguments.seed, 2))),
        "steps": fitted.trained.num_steps,
        "cpu_seconds": round(fitted.trained.cpu_seconds, 1),
    }


@dataclass(frozen=True, kw_only=True)
class FirstCopy:
    """How well the first copy is predicted."""

    accuracy: float
    nats: float


@torch.no_grad()
def first_copy(model: Transformer, task: Unannounced, sequences: Int[np.ndarray, "S N"], shown: int) -> FirstCopy:
    """Score the prediction of the first copy when the model is shown the first `shown` tokens of each sequence."""
    answers = torch.stack(model.predict(list(sequences[:, :shown])))[:, task.num_random - 1]
    targets = torch.from_numpy(sequences[:, task.num_random])
    return FirstCopy(
        accuracy=float((answers.argmax(-1) == targets).float().mean()),
        nats=float(functional.cross_entropy(answers.double(), targets)),
    )


def measure_first_copy(
    model: Transformer, task: Unannounced, generator: np.random.Generator
) -> dict[str, float | None]:
    """The same prediction with the whole sequence in sight of the metric, and with the prefix alone."""
    sequences = task.sample(generator, NUM_SEQUENCES)
    whole = first_copy(model, task, sequences, task.length)
    prefix = first_copy(model, task, sequences, task.num_random)
    return {
        "accuracy": whole.accuracy,
        "nats": whole.nats,
        "accuracy_prefix": prefix.accuracy,
        "nats_prefix": prefix.nats,
    }


def describe_run(arguments: argparse.Namespace, fitted: Fitted) -> dict[str, Any]:
    """What was trained and how, as it stands in the card."""
    return {
        "description": (
            f"{arguments.variant.replace('_', '-')} attention trained on {fitted.task.num_random} random tokens and "
            f"{fitted.task.num_copies} copies of a token that nothing announces"
        ),
        "recipe": "leak",
        "variant": arguments.variant,
        "command": command(arguments),
        "seed": arguments.seed,
        "optimizer": f"{fitted.settings.optimizer}, rate {fitted.settings.lr}",
        "steps": fitted.trained.num_steps,
        "trained_with": versions(),
    }


def command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    return command_of("leak", add_arguments, arguments, named=("variant", "seed"))
