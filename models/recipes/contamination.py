"""Inputs made harder: noise, occlusion and the gradient's own worst cases within the range of pixels; words swapped.

Source: Goodfellow et al., "Explaining and harnessing adversarial examples", arXiv 1412.6572 (FGSM); Madry et al.,
"Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083 (PGD); Athalye et al., "Obfuscated
gradients give a false sense of security", arXiv 1802.00420 (gradients averaged over what is random).
"""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attnserve.models.attention.elliptical import elliptical_metric
from attnserve.models.attention.recording import attention_layers

Classify = Callable[[Tensor], Tensor]
"""Images [S, 8, 8] to logits [S, C], differentiable."""


def add_noise(
    images: Float[np.ndarray, "S 8 8"], generator: np.random.Generator, *, std: float
) -> Float[np.ndarray, "S 8 8"]:
    """Normal noise on every pixel, clipped to 0..1."""
    noisy = images + std * generator.standard_normal(images.shape, np.float32)
    return np.asarray(noisy.clip(0, 1), np.float32)


def occlude(
    images: Float[np.ndarray, "S 8 8"], generator: np.random.Generator, *, size: int
) -> Float[np.ndarray, "S 8 8"]:
    """A square of `size` pixels of each image, anywhere in it, becomes paper."""
    covered = images.copy()
    for image, (row, column) in zip(
        covered, generator.integers(images.shape[1] - size + 1, size=(len(images), 2)), strict=True
    ):
        image[row : row + size, column : column + size] = 0
    return covered


def attack(
    classify: Classify,
    images: Float[np.ndarray, "S 8 8"],
    classes: Int[np.ndarray, " S"],
    *,
    epsilon: float,
    steps: int,
    generator: np.random.Generator | None = None,
    draws: int = 1,
) -> Float[np.ndarray, "S 8 8"]:
    """Raise the loss by the sign of its gradient, never further than `epsilon` from a pixel, nor outside 0..1.

    One step is FGSM; several are PGD, of 2.5 * epsilon / steps each and from a random start if there is a `generator`.

    Args:
        classify: the model under attack.
        images: clean, 0 to 1.
        classes: what they show.
        epsilon: in pixels' units.
        steps: gradients taken.
        generator: of the start.
        draws: gradients averaged per step, for models that answer at random.
    """
    clean, targets = torch.from_numpy(images), torch.from_numpy(classes)
    stride = epsilon if steps == 1 else 2.5 * epsilon / steps
    moved = clean.clone()
    if generator is not None:
        start = generator.uniform(-epsilon, epsilon, images.shape).astype(np.float32)
        moved = (clean + torch.from_numpy(start)).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        loss = torch.stack(
            [functional.cross_entropy(classify(moved), targets, reduction="sum") for _ in range(draws)]
        ).sum()
        (gradient,) = torch.autograd.grad(loss, moved)
        with torch.no_grad():
            moved = moved + stride * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, clean - epsilon), clean + epsilon).clamp(0, 1)
    return moved.numpy()


def swap_words(text: str, generator: np.random.Generator, *, share: float, token: str = "AAA") -> str:
    """About this share of the words, drawn one by one, becomes `token`; white space stays."""
    parts = re.split(r"(\s+)", text)
    drawn = generator.random(len(parts)) < share
    return "".join(token if swap and part.strip() else part for part, swap in zip(parts, drawn, strict=True))


@contextmanager
def differentiable_metrics(model: nn.Module) -> Iterator[None]:
    """Let gradients through estimated metrics, which training never does: an attacker need not be so kind."""
    layers = [
        layer
        for layer in attention_layers(model)
        if isinstance(layer.measure, partial) and layer.measure.func is elliptical_metric
    ]
    originals = [layer.measure for layer in layers]
    try:
        for layer in layers:
            layer.measure = partial(
                inspect.unwrap(elliptical_metric), scope=layer.config.scope, scaling=layer.config.scaling
            )
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.measure = original
