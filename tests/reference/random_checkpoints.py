"""Checkpoints with random numbers in every tensor, for comparing implementations: a fresh model has norms that do
nothing and biases that are 0, and would not show them missing. Written from the table of tensors in docs/checkpoint.md,
and not by the package: one that did not read what the page says would be found out."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.reference.numpy_config import complete, expected_shapes


def save_random_checkpoint(folder: Path, seed: int, layers: list[dict[str, Any]], **config: Any) -> Path:
    """`layers` are the objects of `attention` in config.json, `config` the other fields, of any kind of model. What is
    not given is not written, but for the sizes that every config needs: small ones."""
    read = {} if config.get("num_features") is not None else {"vocabulary_size": 11}
    config = {**read, "max_length": 40, "width": 24, "num_heads": 3, **config, "attention": layers}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(random_tensors(config, np.random.default_rng(seed)), folder / "model.safetensors")
    return folder


def random_tensors(config: dict[str, Any], rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    config = complete(config)
    shapes = sorted(expected_shapes(config).items())
    return {name: random_tensor(name, shape, config, rng).astype(np.float32) for name, shape in shapes}


def random_tensor(
    name: str, shape: tuple[int, ...], config: dict[str, Any], rng: np.random.Generator
) -> NDArray[np.float64]:
    noise: NDArray[np.float64] = rng.standard_normal(shape)
    if name.startswith("rotary."):
        steps, half = np.arange(shape[0])[:, None], shape[1]
        angles = steps * config["rotary_base"] ** (-np.arange(half) / half)
        # A reader that makes the tables again, rather than reading them, is caught by the noise.
        table: NDArray[np.float64] = np.cos(angles) if name == "rotary.cosine" else np.sin(angles)
        return table * (1 + 0.1 * noise)
    if name.endswith("norm.weight"):
        return 1 + 0.3 * noise
    if name.endswith(".bias"):
        return 0.3 * noise
    if name in ("token_embedding.weight", "feature_embedding.cls", "positions.table"):
        return noise
    return 1.5 * noise / math.sqrt(shape[1])
