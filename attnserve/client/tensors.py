"""Tensors: an answer in safetensors, read to arrays and the JSON beside them."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a service writes (docs/formats.md).
TYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1"}
ANSWER = "answer"
SCALE = ".scale"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensors:
    """What an answer holds."""

    document: dict[str, Any]
    """The JSON part."""
    arrays: dict[str, NDArray[Any]]
    """By name; square roots in a byte have become weights again."""


def read_tensors(body: bytes) -> Tensors:
    """Read safetensors: eight bytes of length, a JSON header of that length, and the tensors.

    Raises:
        ValueError: it is something else.
    """
    # Arrays of bytes could not be written to, and torch would complain of that.
    content = bytearray(body)
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        document = json.loads(header.pop("__metadata__")[ANSWER])
        arrays = {name: _read_array(content, start, entry) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError(f"answer: expected safetensors with an answer, got {len(body)} bytes of others") from None
    return Tensors(document=document, arrays=_decode(arrays))


def _read_array(content: bytearray, start: int, entry: dict[str, Any]) -> NDArray[Any]:
    first, end = entry["data_offsets"]
    values = np.frombuffer(memoryview(content)[start + first : start + end], TYPES[entry["dtype"]])
    return values.reshape(entry["shape"])


def _decode(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Weights of codes: a row's scale times the square of the code."""
    decoded = {}
    for name, array in arrays.items():
        scale = arrays.get(f"{name}{SCALE}")
        if scale is not None:
            decoded[name] = (array.astype(np.float32) / 255) ** 2 * scale[..., None]
        elif name.removesuffix(SCALE) not in arrays or not name.endswith(SCALE):
            decoded[name] = array
    return decoded
