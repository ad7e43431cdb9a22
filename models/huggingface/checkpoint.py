"""Reading a Hugging Face folder: safetensors and transformers' own code, never pickles or code of the folder."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from attnserve.checkpoint_files import CONFIG_FILE, INDEX_FILE, MAX_JSON_BYTES, WEIGHTS_FILE, explain_pickle
from attnserve.records import RecordError, read_text


class HuggingFaceError(ValueError):
    """A folder holds no model that can be read or exported; the message names the file or the layer, and the reason."""


def load(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """The model of a folder in float32, in eval mode, of the class that its config names.

    Raises:
        HuggingFaceError: it has none, brings code of its own, pickles alone, or weights that are missing or not finite.
    """
    folder = Path(folder)
    document = read_config(folder / CONFIG_FILE)
    kind = _find_class(folder / CONFIG_FILE, document)
    if not (folder / WEIGHTS_FILE).exists() and not (folder / INDEX_FILE).exists():
        hint = explain_pickle(os.listdir(folder))
        raise HuggingFaceError(f"{folder / WEIGHTS_FILE}: no such file{hint}")
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    # Of mixtures of experts: the other ways have no ONNX, or branch on the data.
    if kind._can_set_experts_implementation():
        options["experts_implementation"] = "batched_mm"
    try:
        model, loaded = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise HuggingFaceError(f"{folder}: transformers cannot load it: {type(error).__name__}: {error}") from error
    if missing := sorted(loaded["missing_keys"]):
        # transformers draws them at random, and says so where nobody looks.
        raise HuggingFaceError(f"{folder}: {missing[0]}: missing, which {kind.__name__} needs")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise HuggingFaceError(f"{folder}: {name}: expected finite numbers, got NaN or infinity")
    found: PreTrainedModel = model.eval()
    return found


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`.

    Raises:
        HuggingFaceError: missing, too large, or no JSON object.
    """
    try:
        document = json.loads(read_text(path, MAX_JSON_BYTES))
    except (RecordError, ValueError, RecursionError) as error:
        raise HuggingFaceError(str(error) if isinstance(error, RecordError) else f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise HuggingFaceError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _find_class(path: Path, document: dict[str, Any]) -> Any:
    if "auto_map" in document:
        raise HuggingFaceError(f"{path}: auto_map: expected a model of transformers, got code in the folder, never run")
    architectures = document.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise HuggingFaceError(f"{path}: architectures: expected one name, got {architectures!r:.80}")
    kind = getattr(transformers, architectures[0], None)
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel):
        raise HuggingFaceError(
            f"{path}: architectures: expected a model of transformers {transformers.__version__}, "
            f"got {architectures[0]!r:.80}"
        )
    return kind
