"""One server for the session, with the committed checkpoints and two random ones."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import COMMITTED, run_export
from tests.reference.random_checkpoints import save_random_checkpoint

FORWARD_LAYERS: list[dict[str, Any]] = [
    {"window": 7, "softcap": 3.0},
    {"variant": "elliptical", "scope": "prefix", "scaling": "mean"},
    {"variant": "expressive", "epsilon": 0.01},
    {"variant": "elliptical", "scope": "prefix", "scaling": "max", "window": 40, "scale": 0.4},
    {"variant": "expressive"},
]
BOTH_WAYS_LAYERS: list[dict[str, Any]] = [
    {"variant": "expressive", "window": 20},
    {"variant": "elliptical", "scope": "sequence", "scaling": "max", "softcap": 2.0},
    {"variant": "elliptical", "scope": "sequence", "scaling": "mean", "window": 9},
]


@dataclass(frozen=True)
class Served:
    """A running server, and the checkpoint behind each of its models."""

    url: str
    checkpoints: dict[str, Path]


@pytest.fixture(scope="session")
def served(
    start_server: Callable[[Path], AbstractContextManager[Any]],
    committed_bundles: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("reference")
    random = save_random_checkpoints(folder / "checkpoints")
    shutil.copytree(committed_bundles, folder / "repository")
    for name, checkpoint in random.items():
        run_export(checkpoint, folder / "repository" / name / "1")
    with start_server(folder / "repository") as server:
        yield Served(str(server.url), {**COMMITTED, **random})


def save_random_checkpoints(folder: Path) -> dict[str, Path]:
    forward = save_random_checkpoint(
        folder / "forward", 1, FORWARD_LAYERS, max_length=300, vocabulary_size=17, activation="silu", mlp_ratio=1.5
    )
    # What no training gives: head 1 of layer 1 has a metric of nothing, head 0 of layer 4 has nothing but scores of 0.
    tensors = load_file(forward / "model.safetensors")
    for layer in (0, 1):
        tensors[f"layers.{layer}.attention.value.weight"][8:16] = 0
    tensors["layers.4.attention.query.weight"][:8] = 0
    save_file(tensors, forward / "model.safetensors")
    both_ways = save_random_checkpoint(
        folder / "both-ways",
        2,
        BOTH_WAYS_LAYERS,
        max_length=300,
        causal=False,
        positions="rotary",
        bias=True,
        activation="gelu_tanh",
    )
    return {"forward": forward, "both-ways": both_ways}
