"""How long the sequences of a load are: one length, a range, a lognormal, or lengths that were seen elsewhere."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FORMS = "64, 8-256, lognormal:MEDIAN:SIGMA or file:PATH"
# Without --lengths: from 1 to this, or to the model's max_length.
DEFAULT_HIGH = 256


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every length from `low` to `high` alike."""

    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """A few long ones among many short ones, as texts are."""

    median: float
    sigma: float
    """Standard deviation of the logarithm: at 1, one in six is longer than 2.7 medians."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Drawn from a file, each line as likely as the others."""

    lengths: tuple[int, ...]


Lengths = Uniform | Lognormal | Seen


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Lengths for a whole run."""

    lengths: NDArray[np.int64]
    """[requests, sequences]."""
    num_cut: int
    """Lengths that were above the model's max_length, and became it."""


def parse_lengths(text: str) -> Lengths:
    """Lengths from the command line.

    Raises:
        ValueError: in none of the forms, below 1, or a file that holds no lengths.
    """
    kind, _, rest = text.partition(":")
    if kind == "file":
        return _read_seen(Path(rest))
    try:
        if kind == "lognormal":
            median, sigma = map(float, rest.split(":"))
            if 1 <= median < math.inf and 0 <= sigma < math.inf:
                return Lognormal(median=median, sigma=sigma)
        else:
            low, dash, high = text.partition("-")
            if 1 <= int(low) <= int(high if dash else low):
                return Uniform(low=int(low), high=int(high if dash else low))
    except ValueError:
        pass
    raise ValueError(f"--lengths: expected {FORMS}, with lengths >= 1 and the smaller one first, got {text!r}")


def draw_lengths(
    lengths: Lengths | None, *, shape: tuple[int, int], max_length: int, generator: np.random.Generator
) -> Drawn:
    """Draw [requests, sequences] lengths.

    Args:
        lengths: None is uniform up to `DEFAULT_HIGH` or the model's `max_length`.
        shape: number of requests, and of sequences in each.
        max_length: of the model. What a distribution or a file has above it is cut to it, and counted.
        generator: what draws.

    Raises:
        ValueError: a length or range was asked for that the model does not take.
    """
    if lengths is None:
        lengths = Uniform(low=1, high=min(DEFAULT_HIGH, max_length))
    if isinstance(lengths, Uniform):
        if lengths.high > max_length:
            raise ValueError(f"--lengths: expected at most the model's max_length {max_length}, got {lengths.high}")
        drawn = generator.integers(lengths.low, lengths.high + 1, shape)
    elif isinstance(lengths, Lognormal):
        # Before rounding, or a large sigma overflows an integer.
        raw = np.minimum(generator.lognormal(math.log(lengths.median), lengths.sigma, shape), max_length + 1)
        drawn = np.maximum(np.rint(raw), 1).astype(np.int64)
    else:
        drawn = generator.choice(np.array(lengths.lengths, np.int64), shape)
    return Drawn(lengths=np.minimum(drawn, max_length), num_cut=int((drawn > max_length).sum()))


def _read_seen(path: Path) -> Seen:
    try:
        words = path.read_text("utf-8").split()
        lengths = tuple(map(int, words))
    except (OSError, ValueError) as error:
        raise ValueError(f"--lengths: expected a file of lengths, whole numbers, got {path}: {error}") from None
    if not lengths or min(lengths) < 1:
        got = f"{min(lengths)} in {path}" if lengths else f"none in {path}"
        raise ValueError(f"--lengths: expected lengths >= 1, got {got}")
    return Seen(lengths=lengths)
