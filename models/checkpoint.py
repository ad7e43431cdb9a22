"""Checkpoints: `config.json` and `model.safetensors`, with an optional `card.json` and `tokenizer.json`.

Pickle is never loaded.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from attnserve.bundle import TOKENIZER_FILE
from attnserve.checkpoint_files import CARD_FILE, CONFIG_FILE, MAX_JSON_BYTES, WEIGHTS_FILE, explain_pickle
from attnserve.models.config import MAX_LAYERS, TransformerConfig
from attnserve.models.transformer import Transformer
from attnserve.records import RecordError, from_json, read_text, to_json
from attnserve.text import read_tokenizer
from attnserve.weights import WeightsError, check_head

# Whoever reads it goes down by recursion.
MAX_CARD_DEPTH = 100


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message names the file or field."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model ready to run, and the card that says how it was trained."""

    model: Transformer
    card: dict[str, Any]
    tokenizer: Path | None
    """Its `tokenizer.json`, read once to see that it fits the model; None if the model reads no text."""


def save_checkpoint(
    model: Transformer,
    folder: str | os.PathLike[str],
    card: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        model: its config and tensors.
        folder: made if it does not exist.
        card: free-form JSON, shown by the service at `GET /v1/models/{model}`.
        tokenizer: of a model that reads text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(to_json(model.config), indent=2) + "\n", "utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Not `save_file`: it makes the file readable by its owner alone, whatever the umask says.
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))
    if card is not None:
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True) + "\n", "utf-8")


def load_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint into a model in eval mode.

    Raises:
        CheckpointError: a file is missing or malformed; a tensor is missing, unknown, not finite, or of another shape.
    """
    folder = Path(folder)
    try:
        document = _read_json(folder / CONFIG_FILE)
        card = _read_card(folder / CARD_FILE) if (folder / CARD_FILE).exists() else {}
    except RecordError as error:
        raise CheckpointError(str(error)) from None
    layers = document.get("attention")
    if isinstance(layers, list) and len(layers) > MAX_LAYERS:
        # Before each of them is looked at: 16 MiB hold millions.
        expected = f"expected 1 to {MAX_LAYERS} entries, one per layer"
        raise CheckpointError(f"{folder / CONFIG_FILE}: attention: {expected}, got {len(layers)}")
    try:
        config = from_json(TransformerConfig, document)
    except RecordError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None
    tokenizer = _check_tokenizer(folder / TOKENIZER_FILE, config)
    _check_weights(folder)
    # On the meta device nothing is drawn or allocated: initial weights would be thrown away, an orthogonal table of
    # 4096 steps takes seconds to make, and a config larger than its tensors is refused instead of exhausting memory.
    with torch.device("meta"):
        model = Transformer(config)
    tensors = _read_tensors(folder, model)
    # Copied, not assigned: they are the mapped file, and truncating that in place would kill the process.
    model.to_empty(device="cpu").load_state_dict(tensors)
    return Checkpoint(model=model.eval(), card=card, tokenizer=tokenizer)


def _check_tokenizer(path: Path, config: TransformerConfig) -> Path | None:
    if not path.exists():
        return None
    try:
        read_tokenizer(path, config.interface)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return path


def _read_card(path: Path) -> Any:
    card = _read_json(path)
    try:
        # It goes into the manifest, and is to be found out now, not after minutes.
        json.dumps(card, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise RecordError(f"{path}: cannot be written as JSON: {error}") from None
    if _measure_depth(card) > MAX_CARD_DEPTH:
        raise RecordError(f"{path}: expected lists and objects at most {MAX_CARD_DEPTH} deep, got deeper ones")
    return card


def _measure_depth(document: Any) -> int:
    """How deep lists and objects are in one another; looks no deeper than it must."""
    depth, level = 0, [document]
    while level and depth <= MAX_CARD_DEPTH:
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
        depth += 1
    return depth


def _read_json(path: Path) -> Any:
    text = read_text(path, MAX_JSON_BYTES)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RecordError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _check_weights(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    if not path.exists():
        hint = explain_pickle(os.listdir(folder) if folder.is_dir() else ())
        raise CheckpointError(f"{path}: no such file{hint}")
    try:
        check_head(path)
    except (WeightsError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _read_tensors(folder: Path, model: Transformer) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise CheckpointError(f"{path}: {name}: missing; expected shape {list(expected[name].shape)}")
        if name not in expected:
            # Whoever reads a log is not to be told where to put his cursor.
            shown = name if name.isprintable() else ascii(name)
            raise CheckpointError(f"{path}: {shown:.200}: unknown tensor; the config names none of that name")
        if tensors[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name}: expected shape {list(expected[name].shape)}, got {list(tensors[name].shape)}"
            )
        if tensors[name].dtype != expected[name].dtype:
            raise CheckpointError(
                f"{path}: {name}: expected {expected[name].dtype}, got {tensors[name].dtype}; save the model as float32"
            )
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
    return tensors
