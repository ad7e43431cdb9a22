"""The images of recipe `digits`, as sequences of patches."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

NUM_PATCHES, NUM_FEATURES, NUM_CLASSES = 16, 4, 10
BRIGHTEST = 16
TEST_SHARE = 0.2
Images = TypeVar("Images", NDArray[np.float32], Tensor)
"""Of numpy or of torch."""


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images and what they show."""

    images: Float[np.ndarray, "S 8 8"]
    """0 (paper) to 1 (ink)."""
    classes: Int[np.ndarray, " S"]
    """0 to 9."""

    def __len__(self) -> int:
        return len(self.classes)


def load_digits() -> Digits:
    """The 1797 images that come with scikit-learn."""
    from sklearn import datasets

    data = datasets.load_digits()
    return Digits(images=(data.images / BRIGHTEST).astype(np.float32), classes=data.target.astype(np.int64))


def split_digits(digits: Digits, *, seed: int, share: float = TEST_SHARE) -> tuple[Digits, Digits]:
    """Images to train on, and images to test on: `share` of every class."""
    order = np.random.default_rng((seed, 2)).permutation(len(digits))
    is_test = np.zeros(len(digits), bool)
    for number in range(NUM_CLASSES):
        of_class = order[digits.classes[order] == number]
        is_test[of_class[: round(share * len(of_class))]] = True
    return select_digits(digits, ~is_test), select_digits(digits, is_test)


def select_digits(digits: Digits, chosen: Bool[np.ndarray, " S"]) -> Digits:
    """Those of `digits` that are chosen, in their order."""
    return Digits(images=digits.images[chosen], classes=digits.classes[chosen])


def cut_patches(images: Images) -> Images:
    """[S, 8, 8] to [S, 16, 4]: patches of 2x2 pixels in reading order, and in a patch its pixels in reading order."""
    return images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, NUM_PATCHES, NUM_FEATURES)
