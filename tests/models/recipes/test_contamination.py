from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from attnserve.models import Transformer, TransformerConfig, layers_of
from attnserve.models.attention.recording import attention_layers
from attnserve.models.recipes.contamination import add_noise, attack, differentiable_metrics, occlude, swap_words
from attnserve.models.recipes.digits_scores import classify_images
from attnserve.models.recipes.images import cut_patches

CLASSES = np.array([0, 1, 0])


def some_images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, 8, 8), np.float32)


def linear(images: Tensor) -> Tensor:
    """Ink speaks for class 0, paper for class 1: the gradient of every pixel is known."""
    ink = images.flatten(1).sum(1)
    return torch.stack([ink, -ink], dim=1)


def new_model(pooling: str = "first") -> Transformer:
    config = TransformerConfig(
        num_features=4,
        max_length=16,
        width=8,
        num_heads=2,
        attention=layers_of("elliptical", 3, scope="sequence", scaling="max"),
        task="classify_sequence",
        num_classes=10,
        pooling=pooling,
        causal=False,
    )
    return Transformer(config, seed=1)


def test_noise_stays_in_range_and_has_the_deviation_it_is_asked_for() -> None:
    grey = np.full((200, 8, 8), 0.5, np.float32)
    noisy = add_noise(grey, np.random.default_rng(0), std=0.1)

    assert noisy.dtype == np.float32
    assert noisy.std() == pytest.approx(0.1, rel=0.02)
    harsh = add_noise(grey, np.random.default_rng(0), std=2.0)
    assert (harsh.min(), harsh.max()) == (0, 1)


def test_a_square_of_every_image_is_covered() -> None:
    images = 1 + some_images()
    covered = occlude(images, np.random.default_rng(0), size=3)

    assert (images > 0).all(), "the originals are left alone"
    for image in covered:
        rows, columns = np.nonzero(image == 0)
        assert len(rows) == 9
        assert (np.ptp(rows), np.ptp(columns)) == (2, 2)


@pytest.mark.parametrize("steps", [1, 10])
def test_an_attack_goes_as_far_as_it_may_and_no_further(steps: int) -> None:
    images = some_images()
    worst = attack(linear, images, CLASSES, epsilon=0.1, steps=steps)

    # Against class 0 less ink, against class 1 more; never outside the range of pixels.
    expected = np.where(CLASSES[:, None, None] == 0, images - 0.1, images + 0.1).clip(0, 1)
    np.testing.assert_allclose(worst, expected, atol=1e-6)


def test_a_random_start_stays_within_the_same_bounds() -> None:
    images = some_images()
    worst = attack(linear, images, CLASSES, epsilon=0.1, steps=1, generator=np.random.default_rng(0))

    assert np.abs(worst - images).max() <= 0.1 + 1e-6
    assert worst.min() >= 0
    assert worst.max() <= 1


def test_gradients_of_several_draws_are_averaged() -> None:
    # Small enough for all gradients to be about as large.
    factors = iter([0.01, -0.01, 0.01])

    def fickle(images: Tensor) -> Tensor:
        return linear(images) * next(factors)

    images = np.full((3, 8, 8), 0.5, np.float32)
    worst = attack(fickle, images, CLASSES, epsilon=0.1, steps=1, draws=3)
    np.testing.assert_allclose(worst, attack(linear, images, CLASSES, epsilon=0.1, steps=1))


def test_words_are_swapped_and_white_space_stays() -> None:
    text = "one  two\nthree " * 400
    swapped = swap_words(text, np.random.default_rng(0), share=0.025)

    assert swapped.count("AAA") == pytest.approx(30, abs=15)
    assert swapped.count("  ") == swapped.count("\n") == 400
    assert len(swapped.split()) == len(text.split())
    assert swap_words(text, np.random.default_rng(0), share=0.0) == text
    assert swap_words("a b", np.random.default_rng(0), share=1.0, token="Z") == "Z Z"


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_logits_of_images_are_those_of_their_patches(pooling: str) -> None:
    model, images = new_model(pooling), some_images()
    with torch.no_grad():
        expected = torch.cat(model.predict(list(cut_patches(images))))
        torch.testing.assert_close(classify_images(model, torch.from_numpy(images)), expected)


def gradient_of(model: Transformer, images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images).requires_grad_(True)
    (gradient,) = torch.autograd.grad(classify_images(model, pixels)[:, 3].sum(), pixels)
    return gradient


def test_a_gradient_through_the_metric_is_the_whole_one() -> None:
    """Against finite differences, which see what the metric does; a gradient with the metric detached does not."""
    model, images = new_model().double(), some_images().astype(np.float64)
    detached = gradient_of(model, images)
    with differentiable_metrics(model):
        whole = gradient_of(model, images)
    measures: list[Callable[..., Tensor] | None] = [layer.measure for layer in attention_layers(model)]

    step = 1e-6
    moved = [images.copy(), images.copy()]
    for sign, some in zip((1, -1), moved, strict=True):
        some[0, 4, 5] += sign * step
    with torch.no_grad():
        high, low = (classify_images(model, torch.from_numpy(some))[0, 3].item() for some in moved)
    slope = (high - low) / (2 * step)
    assert whole[0, 4, 5].item() == pytest.approx(slope, rel=1e-5)
    assert detached[0, 4, 5].item() != pytest.approx(slope, rel=1e-3)
    assert gradient_of(model, images).equal(detached), "put back afterwards"
    assert measures[0] is None
