"""Colours: from numbers to pixels, so that equal steps look equal, to the colour-blind too."""

import numpy as np
from numpy.typing import NDArray

# Viridis (CC0, by S. van der Walt and N. Smith) as polynomials for red, green and blue; off by 3 of 255.
VIRIDIS = np.array(
    [
        (0.2777273272, 0.0054073445, 0.3340998053),
        (0.1050930431, 1.4046135299, 1.3845901626),
        (-0.3308618287, 0.2148475595, 0.0950951630),
        (-4.6342304990, -5.7991009734, -19.3324409563),
        (6.2282699363, 14.1799333668, 56.6905526007),
        (4.7763849977, -13.7451453777, -65.3530326334),
        (-5.4354558559, 4.6458526122, 26.3124352496),
    ]
)
# Blue, white, red, after ColorBrewer's RdBu.
NEGATIVE, ZERO, POSITIVE = (np.array(colour) / 255 for colour in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))
NUM_STEPS = 256


def sequential_palette() -> NDArray[np.uint8]:
    """[256, 3] from nothing to the largest."""
    t = np.linspace(0, 1, NUM_STEPS)[:, None]
    return _to_bytes(sum(coefficients * t**power for power, coefficients in enumerate(VIRIDIS)))


def diverging_palette() -> NDArray[np.uint8]:
    """[256, 3] from the most negative over 0, in the middle, to the most positive."""
    t = np.linspace(-1, 1, NUM_STEPS)[:, None]
    return _to_bytes(ZERO + np.abs(t) * np.where(t < 0, NEGATIVE - ZERO, POSITIVE - ZERO))


def _to_bytes(colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    clipped: NDArray[np.uint8] = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
    return clipped
