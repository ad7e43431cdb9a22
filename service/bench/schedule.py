"""When the requests of an open load are due: drawn before the run, so that no answer can delay them."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Arrivals = Literal["poisson", "constant"]
ARRIVALS: tuple[Arrivals, ...] = ("poisson", "constant")


def draw_arrivals(
    arrivals: Arrivals, *, rate: float, seconds: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Seconds from the start at which requests are due, ascending, all below `seconds`.

    Args:
        arrivals: `poisson`, as of many clients who know nothing of each other, or `constant`, evenly spaced.
        rate: requests per second.
        seconds: length of the schedule.
        generator: of the Poisson process; `constant` draws nothing.
    """
    if arrivals == "constant":
        due = np.arange(math.ceil(rate * seconds)) / rate
        # Rounding may put one more at the very end.
        return due[due < seconds]
    # Given their number, the arrivals of a Poisson process are uniform and independent (Kingman, Poisson Processes,
    # 1993, section 2.4): the same process as exponential gaps, without a loop.
    return np.sort(generator.uniform(0, seconds, generator.poisson(rate * seconds)))
