"""What a batch costs: the model of time and memory that decides who shares a batch.

Rows cost the same wherever they stand; attention's function body computes B x N x N whatever the lengths are, so one
long sequence makes its short neighbours as expensive as itself. A kernel computes the sum of n x n, and holds none of
it. Rows beyond some number cost more: what is between layers no longer fits a cache. Seconds are therefore

    per run + per row * T + per far row * max(0, T - NEAR_ROWS) + per cell * cells

with B * N^2 cells (bodies) or the sum of n^2 (kernels), and bytes grow with rows and cells.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnserve.bundle import Manifest
from attnserve.records import from_json

# B x N shapes timed at warm-up, in pairs of as many rows but far more cells, so that the two can be told apart.
# The last has rows that are far and, for its rows, few cells.
SHAPES = ((1, 1), (16, 1), (16, 8), (1, 128), (32, 16), (1, 512), (1, 1024), (128, 16))
NEAR_ROWS = 1024
REPEATS = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a batch that its cost depends on."""

    num_rows: int = 0
    num_sequences: int = 0
    num_steps: int = 0
    """Steps of the longest sequence."""
    num_own_cells: int = 0
    """Score cells of one head without padding: the sum of n^2."""

    def add(self, length: int) -> "Shape":
        """The batch with one more sequence."""
        return Shape(
            num_rows=self.num_rows + length,
            num_sequences=self.num_sequences + 1,
            num_steps=max(self.num_steps, length),
            num_own_cells=self.num_own_cells + length**2,
        )

    @property
    def num_padded_cells(self) -> int:
        """Score cells of one head with padding: B x N^2."""
        return self.num_sequences * self.num_steps**2


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated seconds and bytes of a batch."""

    seconds_per_run: float
    seconds_per_row: float
    seconds_per_cell: float
    bytes_per_row: float
    bytes_per_cell: float
    pads: bool = True
    """Whether attention computes padding, as function bodies do and kernels do not."""
    seconds_per_far_row: float = 0.0
    """More than a row takes, for each beyond `NEAR_ROWS`."""

    def seconds(self, shape: Shape) -> float:
        """Time one run takes."""
        return self._seconds_of_rows(shape.num_rows) + self.seconds_per_cell * self.cells(shape)

    def bytes(self, shape: Shape) -> float:
        """Memory one run needs beyond the weights."""
        return self.bytes_per_row * shape.num_rows + self.bytes_per_cell * self.cells(shape)

    def cells(self, shape: Shape) -> int:
        """Score cells of one head that are computed."""
        return shape.num_padded_cells if self.pads else shape.num_own_cells

    def seconds_alone(self, length: int) -> float:
        """Time a run of one sequence takes."""
        return self._seconds_of_rows(length) + self.seconds_per_cell * length**2

    def _seconds_of_rows(self, num_rows: int) -> float:
        far = max(0, num_rows - NEAR_ROWS)
        return self.seconds_per_run + self.seconds_per_row * num_rows + self.seconds_per_far_row * far

    def bytes_alone(self, length: int) -> float:
        """Memory a run of one sequence needs beyond the weights."""
        return self.bytes_per_row * length + self.bytes_per_cell * length**2

    def longest_within(self, max_bytes: float) -> int:
        """Longest single sequence whose bytes stay within `max_bytes`."""
        low, high = 0, 1
        while self.bytes_alone(high) <= max_bytes:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bytes_alone(middle) <= max_bytes else (low, middle)
        return low


def parse_costs(given: object) -> dict[str, Cost]:
    """Costs by model, from a mapping or its JSON.

    Raises:
        ValueError: says what was expected.
    """
    try:
        document = json.loads(given or "{}") if isinstance(given, str) else given
    except (ValueError, RecursionError):
        raise ValueError(f"expected costs by model as JSON, got {str(given)[:40]!r}") from None
    if not isinstance(document, Mapping):
        raise ValueError(f"expected costs by model, got {type(document).__name__}")
    costs = {
        str(name): cost if isinstance(cost, Cost) else from_json(Cost, cost, str(name))
        for name, cost in document.items()
    }
    for name, cost in costs.items():
        for field, value in vars(cost).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}.{field}: expected a number >= 0, got {value}")
    return costs


class Forming:
    """A batch that is being formed, one sequence after the other.

    The first is always taken, so nobody starves. Another joins while the batch costs no more time than its members
    alone, and no more than `max_seconds` and `max_bytes`.
    """

    def __init__(self, cost: Cost, *, max_bytes: float = math.inf, max_seconds: float = math.inf) -> None:
        self._cost = cost
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._shape = Shape()
        self._alone = 0.0

    @property
    def num_sequences(self) -> int:
        """Of those that joined."""
        return self._shape.num_sequences

    def join(self, length: int) -> bool:
        """Take a sequence in, if it may join."""
        joined = self._shape.add(length)
        alone = self._alone + self._cost.seconds_alone(length)
        allowed_seconds = min(alone, self._max_seconds)
        if self._shape.num_sequences and (
            self._cost.seconds(joined) > allowed_seconds or self._cost.bytes(joined) > self._max_bytes
        ):
            return False
        self._shape, self._alone = joined, alone
        return True


def take_batch(
    lengths: Iterable[int], cost: Cost, *, max_bytes: float = math.inf, max_seconds: float = math.inf
) -> list[int]:
    """Choose whom to run next: places in the queue, first come first.

    Those who may not join wait, and those behind them may still join.
    """
    batch = Forming(cost, max_bytes=max_bytes, max_seconds=max_seconds)
    return [place for place, length in enumerate(lengths) if batch.join(length)]


def measure_cost(
    manifest: Manifest,
    run: Callable[[Sequence[int]], object],
    *,
    max_seconds: float,
    clock: Callable[[], float] = time.process_time,
    pads: bool = True,
) -> Cost:
    """Time batches of several shapes and fit the cost model.

    Args:
        manifest: of the bundle measured.
        run: runs a batch of sequences of the given lengths.
        max_seconds: no new measurement begins after this time.
        clock: seconds; CPU time by default, because a starting machine is busy with other things too (a GPU needs
            wall time).
        pads: whether attention computes padding.
    """
    start = clock()
    # What each coefficient is multiplied by: runs, rows, cells, far rows.
    shapes: list[list[float]] = []
    seconds: list[float] = []
    for num_sequences, num_steps in SHAPES:
        steps = min(num_steps, manifest.max_length)
        num_rows, num_cells = num_sequences * steps, num_sequences * steps**2
        if shapes and num_cells == shapes[-1][2]:
            continue  # a shorter max_length made two shapes one
        if shapes and clock() - start > max_seconds:
            break
        lengths = [steps] * num_sequences
        run(lengths)
        durations = []
        # The fastest of a few: what the machine can do, not what disturbed it.
        for _ in range(REPEATS):
            before = clock()
            run(lengths)
            durations.append(clock() - before)
            if clock() - start > max_seconds:
                break
        shapes.append([1.0, num_rows, num_cells, max(0, num_rows - NEAR_ROWS)])
        seconds.append(min(durations))
    per_run, per_row, per_cell, per_far_row = _fit(np.array(shapes), np.array(seconds)).tolist()
    # Arithmetic alone costs a cell this share of a row: 2 (E + V) of a head against 24 d of a channel. A measurement
    # that was disturbed, or ended before long sequences, must not make attention look free.
    layer = manifest.layers[0]
    least = (layer.head_size + layer.value_size) / (12 * layer.num_heads * layer.head_size**2)
    per_cell = max(per_cell, per_row * least)
    bytes_per_row, bytes_per_cell = estimate_bytes(manifest)
    if not pads:
        # Of its cells a kernel holds a tile.
        bytes_per_cell = 0.0
    return Cost(
        seconds_per_run=per_run,
        seconds_per_row=per_row,
        seconds_per_cell=per_cell,
        bytes_per_row=bytes_per_row,
        bytes_per_cell=bytes_per_cell,
        pads=pads,
        seconds_per_far_row=per_far_row,
    )


def estimate_bytes(manifest: Manifest) -> tuple[float, float]:
    """Bytes per row and per cell: what one layer holds at a time, since the runtime reuses it for the next.

    Per cell: scores, their square or exponential and the masked result of every head, and the mask.
    """
    layer = manifest.layers[0]
    (hidden,) = (tensor for tensor in manifest.outputs if tensor.name == layer.captures["hidden"])
    # Heads need not add up to the width of the stream.
    width = max(layer.num_heads * layer.head_size, int(hidden.shape[-1]))
    # Residual, query, key, value and their gathered copies, MLP, and captures of every layer; features and logits of
    # every row, and where the graph chooses from these a copy of them, its exponentials, and these again.
    per_output = 1 if manifest.top_k is None else 4
    per_row = width * (16 + 4 * len(manifest.layers)) + (manifest.num_features or 0) + per_output * manifest.num_outputs
    return 4.0 * per_row, 4.0 * 3 * layer.num_heads + 8


def _fit(shapes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Least squares on relative errors with no coefficient below zero."""
    used = list(range(shapes.shape[1]))
    coefficients = np.zeros(shapes.shape[1])
    while used:
        scaled = shapes[:, used] / seconds[:, None]
        solution, *_ = np.linalg.lstsq(scaled, np.ones(len(seconds)), rcond=None)
        if (solution >= 0).all():
            coefficients[used] = solution
            break
        used.pop(int(solution.argmin()))
    return coefficients
