"""Checkpoints with random numbers in every tensor, for comparing implementations: a fresh model has norms that do
nothing and biases that are 0, and would not show them missing."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from attnserve.models import AttentionConfig, Transformer, TransformerConfig, save_checkpoint


def save_random_checkpoint(folder: Path, seed: int, layers: list[dict[str, Any]], **fields: Any) -> Path:
    """`layers` are the objects of `attention` in config.json, `fields` the other fields."""
    config = TransformerConfig(
        **{"vocabulary_size": 11, "max_length": 40, "width": 24, "num_heads": 3, **fields},
        attention=tuple(AttentionConfig(**layer) for layer in layers),
    )
    save_checkpoint(Transformer(config, seed=seed), folder)
    shuffle_numbers(folder, np.random.default_rng(seed))
    return folder


def shuffle_numbers(folder: Path, rng: np.random.Generator) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors):
        noise = rng.standard_normal(tensors[name].shape)
        if name.startswith("rotary."):
            # A reader that makes the tables again, rather than reading them, is caught by this.
            tensors[name] = tensors[name] * (1 + 0.1 * noise)
        elif name.endswith("norm.weight"):
            tensors[name] = 1 + 0.3 * noise
        elif name.endswith(".bias"):
            tensors[name] = 0.3 * noise
        elif name.startswith(("token_embedding.", "positions.")):
            tensors[name] = noise
        else:
            tensors[name] = 1.5 * noise / np.sqrt(noise.shape[1])
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, path)
