"""Checking the arguments of `export_module`, before anything is copied or written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn


def check_module(module: object) -> None:
    """Refuse what is no module with numbers in it.

    Raises:
        ValueError: names the argument.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, got {_name(module)}")
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise ValueError(f"module: expected tensors with numbers in them, got {name} on the meta device")


def check_options(**options: Any) -> None:
    """Refuse options of another type than their own, by the names that `export_module` gives them.

    Raises:
        ValueError: names the argument.
    """
    for name in ("leading_row", "portable"):
        if not isinstance(options[name], bool):
            raise ValueError(f"{name}: expected True or False, got {options[name]!r:.40}")
    for name in ("labels", "blocks", "projections"):
        value = options[name]
        if value is None:
            continue
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name}: expected a list of names, got {value!r:.40}")
    card = options["card"]
    if card is None:
        return
    if not isinstance(card, Mapping):
        raise ValueError(f"card: expected a dictionary, got {_name(card)}")
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"card: expected what JSON can hold: {error}") from None


def check_example(example: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
    """One sequence as int64 [n] or float32 [n, F].

    Raises:
        ValueError: it is neither.
    """
    expected = "example: expected ids [n] or finite feature vectors [n, F]"
    try:
        sample = np.asarray(example)
    except ValueError:
        raise ValueError(f"{expected}, got rows of several lengths") from None
    if sample.ndim == 1 and len(sample) and np.issubdtype(sample.dtype, np.integer):
        return sample.astype(np.int64)
    if sample.ndim == 2 and sample.size and np.issubdtype(sample.dtype, np.floating):
        with np.errstate(over="ignore"):
            features = sample.astype(np.float32)
        if np.isfinite(features).all():
            return features
    raise ValueError(f"{expected}, got {sample.dtype} {list(sample.shape)}")


def find_submodules(module: nn.Module, argument: str, names: Sequence[str] | None) -> list[Any] | None:
    """Submodules by name; None if none are named.

    Raises:
        ValueError: names the argument and the first name that is none.
    """
    if names is None:
        return None
    known = dict(module.named_modules())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{argument}: expected names of submodules, got {unknown[0]!r}")
    return [known[name] for name in names]


def _name(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
