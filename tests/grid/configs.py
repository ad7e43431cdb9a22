"""The grid: so many small models that every legal pair of values of two fields is in one of them."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.grid.covering import cover
from tests.grid.rules import NUM_LAYERS, Choice, document_of


def name_of(index: int, choice: Choice) -> str:
    """What to call a model of the grid, in tests and in URLs."""
    reads = "features" if choice["vocabulary_size"] is None else "ids"
    variants = [choice[f"layers.{layer}.variant"] for layer in range(NUM_LAYERS)]
    words = [f"{index:02}", reads, choice["task"], choice["pooling"], *variants, choice["precision"]]
    return "-".join(word for word in words if word is not None)


GRID = {name_of(index, choice): choice for index, choice in enumerate(cover(seed=0))}
# The first ones have the most pairs.
QUICK = tuple(GRID)[:4]


def every(names: Any) -> Any:
    """Parametrise by models of the grid; all but the quick ones are slow."""
    marked = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def save_random(name: str, folder: Path) -> None:
    """A checkpoint of a model of the grid, written by the package. Its weights are random and hide nothing."""
    import torch

    from attnserve.models.checkpoint import save_checkpoint
    from attnserve.models.config import TransformerConfig
    from attnserve.models.transformer import Transformer
    from attnserve.records import from_json

    model = Transformer(from_json(TransformerConfig, document_of(GRID[name])), seed=seed_of(name))
    generator = torch.Generator().manual_seed(seed_of(name))
    with torch.no_grad():
        for parameter in model.parameters():
            # Gains of 1 and biases of 0 would hide a norm that forgets them.
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for block in model.layers:
            # Initial weights attend to everything alike; larger ones tell the keys apart.
            block.attention.query.weight *= 4
            block.attention.key.weight *= 4
    save_checkpoint(model, folder, {"purpose": "tests"})


def sequences_of(name: str, *lengths: int) -> list[Any]:
    """Random sequences as a client sends them: ids, or feature vectors of numbers that float32 has."""
    draw = np.random.default_rng(seed_of(name))
    return [random_steps(GRID[name], draw, length).tolist() for length in lengths]


def random_steps(choice: Choice, draw: np.random.Generator, length: int) -> np.ndarray:
    if choice["vocabulary_size"] is not None:
        return draw.integers(choice["vocabulary_size"], size=length)
    return draw.normal(size=(length, choice["num_features"])).astype(np.float32).astype(np.float64)


def changed_after(name: str, sequence: list[Any], step: int) -> list[Any]:
    """The same up to and with `step`, and something else at every later one."""
    choice = GRID[name]
    if choice["vocabulary_size"] is not None:
        return [*sequence[: step + 1], *((number + 1) % choice["vocabulary_size"] for number in sequence[step + 1 :])]
    return [*sequence[: step + 1], *([-number for number in vector] for vector in sequence[step + 1 :])]
