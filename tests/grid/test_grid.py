"""Every model of the grid, over HTTP: the laws, and what the reader written from docs/checkpoint.md says of it."""

import numpy as np
import pytest

from attnserve.cli import main
from tests.grid.configs import GRID, changed_after, every, sequences_of
from tests.grid.conftest import Answer, Grid, is_leaky
from tests.reference import numpy_transformer
from tests.reference.numpy_transformer import Model

pytestmark = [pytest.mark.export, pytest.mark.http]

# The certificate was measured on golden's inputs. Others may be worse, so twice that is allowed. Now and then one is
# worse by far, of expressive attention whose scores are nearly 0: PyTorch itself is outside the certificate then. There
# counts how far the reader moves in float64 when its tensors are rounded; of so many roundings the one that moves most.
OTHER_INPUTS = 2
ROUNDED_ONCE = 8
NUM_ROUNDINGS = 4
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "int8": 2.0**-24}


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))


def roundings_of(model: Model, rounding: float) -> list[Model]:
    """The model with every number in its tensors off by up to this much of itself."""
    draw = np.random.default_rng(0)
    return [
        Model(
            model.config,
            {key: it * (1 + rounding * draw.uniform(-1, 1, it.shape)) for key, it in sorted(model.tensors.items())},
        )
        for _ in range(NUM_ROUNDINGS)
    ]


def assert_same(grid: Grid, name: str, found: Answer, expected: Answer) -> None:
    allowed = grid.allowed(name)
    assert difference(found.logits, expected.logits) <= allowed.logits
    assert difference(found.maps, expected.maps) <= allowed.maps


@every(GRID)
def test_check_passes(name: str, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(grid.repository / name / "1")]) == 0, capsys.readouterr().out


@every(GRID)
def test_the_reader_of_the_page_agrees(name: str, grid: Grid) -> None:
    model = numpy_transformer.load(grid.checkpoints / name)
    if GRID[name]["precision"] == "int8":
        model = numpy_transformer.rounded(model)
    allowed = grid.allowed(name)
    rounded = roundings_of(model, ROUNDING[GRID[name]["precision"]])
    longest = GRID[name]["max_length"]
    sequences = sequences_of(name, 1, longest, 2, 9, 23)
    for sequence, answer in zip(sequences, grid.ask(name, *sequences), strict=True):
        expected = numpy_transformer.run(model, sequence)
        others = [numpy_transformer.run(other, sequence) for other in rounded]
        for kind in ("logits", "maps"):
            truth = getattr(expected, kind)
            moved = max(difference(getattr(other, kind), truth) for other in others)
            bound = max(OTHER_INPUTS * getattr(allowed, kind), ROUNDED_ONCE * moved)
            assert difference(getattr(answer, kind), truth) <= bound, kind
        assert (answer.maps[expected.maps == 0] == 0).all()


@every(GRID)
def test_batch_mates_their_lengths_and_place_do_not_matter(name: str, grid: Grid) -> None:
    longest = GRID[name]["max_length"]
    sequences = sequences_of(name, 5, 1, longest, 5, 12)
    alone = [grid.ask(name, sequence)[0] for sequence in sequences]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 1, 0], [3, 0], [0, 2, 2]):
        together = grid.ask(name, *(sequences[index] for index in order))
        for index, answer in zip(order, together, strict=True):
            assert_same(grid, name, answer, alone[index])
    for sequence, answer in zip(sequences, alone, strict=True):
        assert difference(grid.predict(name, sequence), answer.logits) <= grid.allowed(name).logits


@every(name for name, choice in GRID.items() if choice["causal"] and not is_leaky(choice))
@pytest.mark.parametrize("step", [0, 7, 20])
def test_the_future_changes_nothing(name: str, step: int, grid: Grid) -> None:
    choice = GRID[name]
    (sequence,) = sequences_of(name, 26)
    other = changed_after(name, sequence, step)
    before, after, prefix = (grid.ask(name, it)[0] for it in (sequence, other, sequence[: step + 1]))
    allowed = grid.allowed(name)
    past = slice(step + 1)
    # Shapes are equal, so the same is computed in the same order.
    exact = choice["precision"] != "float16"
    assert difference(after.maps[:, :, past], before.maps[:, :, past]) <= (0 if exact else allowed.maps)
    assert difference(prefix.maps, before.maps[:, :, past, past]) <= allowed.maps
    # A pooled answer has no step before the change.
    if choice["task"] != "classify_sequence":
        assert difference(after.logits[past], before.logits[past]) <= (0 if exact else allowed.logits)
        assert difference(prefix.logits, before.logits[past]) <= allowed.logits
        # The change did arrive, in the very next step.
        assert not np.array_equal(after.logits[step + 1], before.logits[step + 1])
