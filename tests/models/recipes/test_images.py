import itertools

import numpy as np
import pytest
import torch

from attnserve.models.recipes.images import Digits, cut_patches, load_digits, split_digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


def test_digits_are_images_from_paper_to_ink(digits: Digits) -> None:
    assert digits.images.shape == (1797, 8, 8)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert set(digits.classes.tolist()) == set(range(10))


def test_patches_are_in_reading_order() -> None:
    images = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8)
    patches = cut_patches(images)

    assert patches.shape == (2, 16, 4)
    for image, row, column in itertools.product(range(2), range(4), range(4)):
        expected = images[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert patches[image, 4 * row + column].tolist() == expected.flatten().tolist()


def test_the_split_is_disjoint_and_has_a_fifth_of_every_class(digits: Digits) -> None:
    # Pixels that name the image: some images of the data may be equal.
    count = len(digits)
    numbered = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, 8, 8))
    train_digits, test_digits = split_digits(Digits(images=numbered, classes=digits.classes), seed=0)

    train_ids, test_ids = (part.images[:, 0, 0].astype(int) for part in (train_digits, test_digits))
    assert sorted([*train_ids, *test_ids]) == list(range(count))
    for part, ids in ((train_digits, train_ids), (test_digits, test_ids)):
        np.testing.assert_array_equal(part.classes, digits.classes[ids])
    for number in range(10):
        share = (test_digits.classes == number).sum() / (digits.classes == number).sum()
        assert share == pytest.approx(0.2, abs=0.003)


def test_the_seed_decides_the_split(digits: Digits) -> None:
    first, again, other = (split_digits(digits, seed=seed)[1] for seed in (0, 0, 1))

    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_patches_of_torch_are_those_of_numpy() -> None:
    images = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8)
    assert cut_patches(torch.from_numpy(images)).tolist() == cut_patches(images).tolist()
