"""Recipe `digits`: train a classifier of handwritten digits, score it, and save it with its card.

`attnserve train digits --out FOLDER`; the defaults take half a minute of one core. An image is a sequence of patches,
as in Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929): 16 of 2x2 pixels.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from attnserve.interface import POOLINGS, Interface
from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.conditioning import conditioning_over
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
from attnserve.models.recipes.training import Batch, TrainingSettings, train
from attnserve.models.threads import num_threads
from attnserve.models.transformer import Transformer
from attnserve.packing import add_leading_row, pack

SUMMARY = "handwritten digits, 8x8 pixels as 16 patches, to one of ten classes"
NUM_PATCHES, NUM_FEATURES, NUM_CLASSES = 16, 4, 10
BRIGHTEST = 16
TEST_SHARE = 0.2
NUM_ROUNDED = 50
"""Test images run in float64 too, one by one."""


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images and what they show."""

    images: Float[np.ndarray, "S 8 8"]
    """0 (paper) to 1 (ink)."""
    classes: Int[np.ndarray, " S"]
    """0 to 9."""

    def __len__(self) -> int:
        return len(self.classes)


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
    training.add_argument("--steps", type=int, default=1000, help="optimiser steps (default: %(default)s)")
    training.add_argument("--batch", type=int, default=64, help="images per step, at most (default: %(default)s)")
    add_optimizer_options(training)
    add_run_options(training)
    parser.set_defaults(variant="elliptical", heads=4, positions="learned", optimizer="adamw")


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch")
    settings = settings_of(arguments)
    model = Transformer(config_of(arguments), seed=arguments.seed)
    train_digits, test_digits = split_digits(load_digits(), seed=arguments.seed)
    # Before a minute of training, not after.
    check_folder(arguments.out)
    with num_threads(arguments.threads):
        # Streams 0, 1, 2 of one seed: weights, order, split.
        order = np.random.default_rng((arguments.seed, 1))
        data = batches(train_digits, model.config.interface, order, num_images=arguments.batch)
        train(model, data, settings, progress=not arguments.quiet)
        card = describe_run(arguments, settings) | score(model, train_digits, test_digits)
    print(f"test accuracy: {card['test_accuracy']:.6f} of {card['num_test_images']} images")
    save_run(model, arguments.out, card)
    return 0


def load_digits() -> Digits:
    """The 1797 images that come with scikit-learn."""
    from sklearn import datasets

    data = datasets.load_digits()
    return Digits(images=(data.images / BRIGHTEST).astype(np.float32), classes=data.target.astype(np.int64))


def split_digits(digits: Digits, *, seed: int) -> tuple[Digits, Digits]:
    """Images to train on, and images to test on: `TEST_SHARE` of every class."""
    order = np.random.default_rng((seed, 2)).permutation(len(digits))
    is_test = np.zeros(len(digits), bool)
    for number in range(NUM_CLASSES):
        of_class = order[digits.classes[order] == number]
        is_test[of_class[: round(TEST_SHARE * len(of_class))]] = True
    return select_digits(digits, ~is_test), select_digits(digits, is_test)


def select_digits(digits: Digits, chosen: Bool[np.ndarray, " S"]) -> Digits:
    """Those of `digits` that are chosen, in their order."""
    return Digits(images=digits.images[chosen], classes=digits.classes[chosen])


def cut_patches(images: Float[np.ndarray, "S 8 8"]) -> Float[np.ndarray, "S 16 4"]:
    """Patches of 2x2 pixels in reading order, and within a patch its pixels in reading order."""
    return images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, NUM_PATCHES, NUM_FEATURES)


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


@torch.no_grad()
def accuracy(model: Transformer, digits: Digits) -> float:
    """Share of images whose most likely class is the right one."""
    logits = torch.cat(model.predict(list(cut_patches(digits.images))))
    return float((logits.argmax(-1).numpy() == digits.classes).mean())


def score(model: Transformer, train_digits: Digits, test_digits: Digits) -> dict[str, Any]:
    """Everything measured after training, as it stands in the card."""
    rounded = list(cut_patches(test_digits.images[:NUM_ROUNDED]))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test_accuracy": accuracy(model, test_digits),
        "train_accuracy": accuracy(model, train_digits),
        "num_test_images": len(test_digits),
        "num_train_images": len(train_digits),
        "conditioning": dataclasses.asdict(conditioning_over(model, rounded)),
    }


def describe_run(arguments: argparse.Namespace, settings: TrainingSettings) -> dict[str, Any]:
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
        "command": command_of("digits", add_arguments, arguments, named=("variant", "seed")),
        "seed": arguments.seed,
        "optimizer": f"{settings.optimizer}, rate {settings.lr}",
        "steps": settings.steps,
        "trained_with": versions() | {"scikit-learn": sklearn.__version__},
    }
