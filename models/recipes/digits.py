"""Recipe `digits`: train a classifier of handwritten digits, score it, and save it with its card.

`attnserve train digits --out FOLDER`; the defaults take half a minute of one core. An image is a sequence of patches,
as in Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929): 16 of 2x2 pixels.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attnserve.interface import POOLINGS, Interface
from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.digits_scores import accuracy, measure_robustness, score
from attnserve.models.recipes.images import (
    NUM_CLASSES,
    NUM_FEATURES,
    NUM_PATCHES,
    TEST_SHARE,
    Digits,
    cut_patches,
    load_digits,
    split_digits,
)
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
from attnserve.models.recipes.runs import Trained, add_run_options, command_of, save_run, train_as_asked, versions
from attnserve.models.recipes.summary import Measure
from attnserve.models.recipes.training import Batch, TrainingSettings
from attnserve.models.transformer import Transformer
from attnserve.packing import add_leading_row, pack

SUMMARY = "handwritten digits, 8x8 pixels as 16 patches, to one of ten classes"
VALIDATION_SHARE = 0.1
"""Of what is left for training, if scores are taken on the way."""
STEPS = 1000
TASK = "digits"
COMPARED = {
    "dot-product": "--variant dot_product --layers 2",
    "expressive": "--variant expressive --layers 2",
    "elliptical": "--variant elliptical --layers 2",
    "elliptical, random metric": "--variant elliptical --layers 2 --metric random",
}
"""What `--quick` compares: a row and its options."""
QUICK = {"steps": 200}
LESSON = "Differences smaller than the deviations are none; a random metric is what an estimated one has to beat."
MEASURES = (
    Measure(header="clean, %", column="accuracy", kind="share"),
    Measure(header="noise, %", column="noise", kind="share"),
    Measure(header="occlusion, %", column="occlusion", kind="share"),
    Measure(header="FGSM, %", column="fgsm", kind="share"),
    Measure(header="PGD, %", column="pgd", kind="share"),
    Measure(header="PGD through the metric, %", column="pgd_through_metric", kind="share"),
    Measure(header="CPU s", column="cpu_seconds", kind="seconds"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `attnserve train digits`."""
    task = parser.add_argument_group("task")
    task.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="first",
        help="the step that answers, or the mean of all; first is a row before the patches (default: %(default)s)",
    )

    add_model_options(parser)

    training = parser.add_argument_group("training")
    training.add_argument("--seed", type=int, default=0, help="of weights, split and order (default: %(default)s)")
    training.add_argument("--batch", type=int, default=64, help="images per step, at most (default: %(default)s)")
    add_optimizer_options(training, steps=STEPS)
    add_watch_options(training, score=f"the accuracy on {VALIDATION_SHARE:.0%} of the images, kept from training")
    add_run_options(training)
    parser.set_defaults(variant="elliptical", heads=4, positions="learned", optimizer="adamw")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model, and the images it was and was not trained on."""

    model: Transformer
    train_digits: Digits
    test_digits: Digits
    settings: TrainingSettings
    trained: Trained


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    fitted = fit(arguments)
    card = describe_run(arguments, fitted) | score(fitted.model, fitted.train_digits, fitted.test_digits)
    print(f"test accuracy: {card['test_accuracy']:.6f} of {card['num_test_images']} images")
    save_run(fitted.model, arguments.out, card)
    return 0


def fit(arguments: argparse.Namespace) -> Fitted:
    """Train a model as the options say.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch")
    settings = settings_of(arguments, steps=STEPS)
    model = build_model(config_of(arguments), arguments)
    train_digits, test_digits = split_digits(load_digits(), seed=arguments.seed)
    trained_on = train_digits
    watch = None
    if arguments.score_every:
        trained_on, validation = split_digits(train_digits, seed=arguments.seed, share=VALIDATION_SHARE)
        watch = watch_of(arguments, lambda: accuracy(model, validation))
    # Streams 0, 1, 2, ... of one seed: weights, order, split, contamination.
    order = np.random.default_rng((arguments.seed, 1))
    data = batches(trained_on, model.config.interface, order, num_images=arguments.batch)
    trained = train_as_asked(model, data, settings, arguments, watch=watch, command=command(arguments))
    return Fitted(
        model=model,
        train_digits=trained_on,
        test_digits=test_digits,
        settings=settings,
        trained=trained,
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and measure what stands in the log: a value per column, None where there is none."""
    fitted = fit(arguments)
    generator = np.random.default_rng((arguments.seed, 3))
    return {
        **measure_robustness(fitted.model, fitted.test_digits, generator, metric=arguments.metric),
        "train_accuracy": accuracy(fitted.model, fitted.train_digits),
        "steps": fitted.trained.num_steps,
        "cpu_seconds": round(fitted.trained.cpu_seconds, 1),
    }


def batches(
    digits: Digits, interface: Interface, generator: np.random.Generator, *, num_images: int
) -> Iterator[Batch]:
    """Endless training batches of at most `num_images`: every image once, in a random order, and again in another."""
    features = cut_patches(digits.images)
    while True:
        order = generator.permutation(len(digits))
        for start in range(0, len(order), num_images):
            chosen = order[start : start + num_images]
            packed = pack([add_leading_row(rows) if interface.leading_row else rows for rows in features[chosen]])
            step = interface.answer_step(packed.slots.shape[1])
            yield Batch(
                inputs=torch.from_numpy(packed.inputs),
                positions=torch.from_numpy(packed.positions),
                slots=torch.from_numpy(packed.slots),
                # The model does not read them when it pools the mean.
                rows=torch.from_numpy(packed.slots[:, step]),
                targets=torch.from_numpy(digits.classes[chosen]),
            )


def config_of(arguments: argparse.Namespace) -> TransformerConfig:
    """The model to train, from the options."""
    return TransformerConfig(
        num_features=NUM_FEATURES,
        max_length=NUM_PATCHES,
        **shape_of(arguments, causal=False),
        task="classify_sequence",
        num_classes=NUM_CLASSES,
        pooling=arguments.pooling,
        labels=tuple(str(number) for number in range(NUM_CLASSES)),
    )


def describe_run(arguments: argparse.Namespace, fitted: Fitted) -> dict[str, Any]:
    """What was trained and how, as it stands in the card."""
    import sklearn

    return {
        "description": (
            f"{arguments.variant.replace('_', '-')} attention trained to read handwritten digits: 8x8 pixels, cut into "
            "16 patches of 2x2"
        ),
        "recipe": "digits",
        "input": (
            "a sequence is 16 vectors of 4: the patches of 2x2 pixels in reading order, each with its pixels in "
            "reading order, divided by 16"
        ),
        "data": (
            "scikit-learn's load_digits: the 1797 test images of the UCI Optical Recognition of Handwritten Digits, "
            f"8x8 pixels; {TEST_SHARE:.0%} of each class, drawn by the seed, are the test images here, "
            "so both parts hold digits of the same writers"
        ),
        "variant": arguments.variant,
        "command": command(arguments),
        "seed": arguments.seed,
        "optimizer": f"{fitted.settings.optimizer}, rate {fitted.settings.lr}",
        "steps": fitted.trained.num_steps,
        "trained_with": versions() | {"scikit-learn": sklearn.__version__},
    }


def command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    return command_of("digits", add_arguments, arguments, named=("variant", "seed"))
