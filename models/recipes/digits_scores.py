"""What is measured of a classifier of digits: for the card of a checkpoint, and for the log of a study."""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attnserve.models.recipes.collapse import similarity_columns
from attnserve.models.recipes.conditioning import conditioning_over
from attnserve.models.recipes.contamination import add_noise, attack, differentiable_metrics, occlude
from attnserve.models.recipes.images import Digits, cut_patches
from attnserve.models.transformer import Transformer

NUM_ROUNDED = 50
"""Test images run in float64 too, one by one."""
NOISE_STD = 0.3
OCCLUDED = 4
"""Side of the square that is covered, of 8 pixels."""
EPSILON = 0.1
"""How far an attack moves a pixel, of 0..1: 1.6 of the 16 grey levels."""
PGD_STEPS = 20
RANDOM_DRAWS = 5
"""Gradients an attacker averages where the metric is random."""


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


def measure_robustness(
    model: Transformer, digits: Digits, generator: np.random.Generator, *, metric: str
) -> dict[str, float | None]:
    """Accuracy on images as they are and on harder ones, and how alike patches become from layer to layer."""

    def on(images: Float[np.ndarray, "S 8 8"]) -> float:
        return accuracy(model, dataclasses.replace(digits, images=images))

    def classify(images: Tensor) -> Tensor:
        return classify_images(model, images)

    clean = (digits.images, digits.classes)
    is_random = metric == "random"
    is_estimated = not is_random and any(layer.variant == "elliptical" for layer in model.config.attention)
    draws = RANDOM_DRAWS if is_random else 1
    columns: dict[str, float | None] = {
        "accuracy": accuracy(model, digits),
        "noise": on(add_noise(digits.images, generator, std=NOISE_STD)),
        "occlusion": on(occlude(digits.images, generator, size=OCCLUDED)),
        "fgsm": on(attack(classify, *clean, epsilon=EPSILON, steps=1, draws=draws)),
        "pgd": on(attack(classify, *clean, epsilon=EPSILON, steps=PGD_STEPS, generator=generator, draws=draws)),
        "pgd_through_metric": None,
    }
    if is_estimated:
        with differentiable_metrics(model):
            worst = attack(classify, *clean, epsilon=EPSILON, steps=PGD_STEPS, generator=generator)
        columns["pgd_through_metric"] = on(worst)
    return columns | similarity_columns(model, list(cut_patches(digits.images)))


def classify_images(model: Transformer, images: Float[Tensor, "S 8 8"]) -> Float[Tensor, "S C"]:
    """Logits that gradients reach the pixels through."""
    interface = model.config.interface
    features = cut_patches(images)
    if interface.leading_row:
        features = torch.cat([torch.zeros_like(features[:, :1]), features], dim=1)
    num_images, num_steps = features.shape[:2]
    slots = torch.arange(num_images * num_steps).view(num_images, num_steps)
    positions = torch.arange(num_steps).repeat(num_images)
    rows = slots[:, interface.answer_step(num_steps)]
    logits: Tensor = model(features.flatten(0, 1), positions, slots, rows)
    return logits
