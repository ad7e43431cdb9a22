import dataclasses
import math

import pytest
import torch

from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.config import ADDED_POSITIONS, POSITIONS
from attnserve.models.positions import AddedPositions, RotaryPositions, sinusoidal_table


def config(positions: str, *, max_length: int = 6, width: int = 8) -> TransformerConfig:
    return TransformerConfig(
        vocabulary_size=5,
        max_length=max_length,
        width=width,
        num_heads=2,
        attention=(AttentionConfig(),),
        positions=positions,
        rotary_base=100.0,
    )


@pytest.mark.parametrize("max_length", [1, 6, 8])
def test_an_orthogonal_table_is_orthogonal_with_rows_as_long_as_embeddings(max_length: int) -> None:
    table = AddedPositions(config("orthogonal", max_length=max_length)).table.double()
    assert table.shape == (max_length, 8)
    torch.testing.assert_close(table @ table.T, 8 * torch.eye(max_length).double(), rtol=0, atol=1e-5)


def test_a_table_longer_than_wide_keeps_the_length_of_its_rows() -> None:
    table = AddedPositions(config("orthogonal", max_length=40)).table
    torch.testing.assert_close(table.norm(dim=1), torch.full((40,), math.sqrt(8)))
    # No two steps look alike.
    cosines = (table @ table.T / 8).fill_diagonal_(0)
    assert cosines.abs().max() < 0.999


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_a_sinusoidal_table_is_the_formula_of_the_paper(width: int) -> None:
    table = sinusoidal_table(300, width)
    assert table.shape == (300, width)
    assert table.dtype == torch.float32
    for step in (0, 1, 7, 299):
        for pair in range((width + 1) // 2):
            angle = step / 10_000 ** (2 * pair / width)
            # Of an odd width the last cosine is cut off.
            expected = [math.sin(angle), math.cos(angle)][: width - 2 * pair]
            assert table[step, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("positions", [name for name in ADDED_POSITIONS if name != "learned"])
def test_only_learned_positions_are_trained(positions: str) -> None:
    assert "positions.table" in dict(Transformer(config("learned")).named_parameters())
    assert "positions.table" not in dict(Transformer(config(positions)).named_parameters())


def test_a_model_s_sinusoidal_table_does_not_depend_on_its_seed() -> None:
    first, second = (Transformer(config("sinusoidal"), seed=seed).positions.table for seed in (1, 2))
    assert torch.equal(first, second)
    assert torch.equal(first, sinusoidal_table(6, 8))


@pytest.mark.parametrize("positions", [name for name in POSITIONS if name != "none"])
def test_a_leading_row_has_a_position_of_its_own(positions: str) -> None:
    reads = {"vocabulary_size": None, "num_features": 3, "task": "classify_sequence", "num_classes": 2}
    made_of = dataclasses.replace(config(positions), **reads, pooling="first", causal=False)
    state = Transformer(made_of).state_dict()
    assert {len(tensor) for name, tensor in state.items() if name.startswith(("positions.", "rotary."))} == {7}


@pytest.mark.parametrize(
    ("positions", "names"),
    [
        ("orthogonal", {"positions.table"}),
        ("learned", {"positions.table"}),
        ("sinusoidal", {"positions.table"}),
        ("rotary", {"rotary.cosine", "rotary.sine"}),
        ("none", set()),
    ],
)
def test_tables_are_tensors_of_the_checkpoint(positions: str, names: set[str]) -> None:
    state = Transformer(config(positions)).state_dict()
    assert {name for name in state if name.startswith(("positions", "rotary"))} == names


def test_added_positions_are_rows_of_the_table() -> None:
    positions = AddedPositions(config("orthogonal"))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 1, 0, 5])
    assert torch.equal(positions(x, steps), x + positions.table[steps])


def test_rotation_is_the_half_split_formula() -> None:
    rotary = RotaryPositions(config("rotary"))
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    steps = [0, 3, 5]
    rotated = rotary.at(torch.tensor(steps))(x)
    for row, step in enumerate(steps):
        for head in range(2):
            for e in range(2):
                angle = step * 100.0 ** (-2 * e / 4)
                low, high = float(x[row, head, e]), float(x[row, head, e + 2])
                expected = complex(low, high) * complex(math.cos(angle), math.sin(angle))
                assert float(rotated[row, head, e]) == pytest.approx(expected.real, abs=1e-6)
                assert float(rotated[row, head, e + 2]) == pytest.approx(expected.imag, abs=1e-6)


def test_scores_of_rotated_rows_depend_on_the_distance_alone() -> None:
    rotary = RotaryPositions(config("rotary", max_length=20)).double()
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 4, generator=generator, dtype=torch.float64)

    def score(at: int, other: int) -> float:
        return float((rotary.at(torch.tensor([at]))(query) * rotary.at(torch.tensor([other]))(key)).sum())

    assert score(9, 4) == pytest.approx(score(17, 12), abs=1e-6)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)
