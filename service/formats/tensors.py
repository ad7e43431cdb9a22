"""Answers as named tensors, with their JSON part beside them: safetensors, npz, and the protocol's binary extension."""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from attnserve.service.formats.compression import Part
from attnserve.service.formats.negotiation import BINARY, NPZ, SAFETENSORS

Arrays = Mapping[str, NDArray[Any]]

ANSWER = "answer"
"""Where the JSON part is: in safetensors' metadata, or among the arrays of npz."""
HEADER = "Inference-Header-Content-Length"
DATATYPES = {"float16": "FP16", "float32": "FP32", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}
"""What the Open Inference Protocol calls them."""
SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "uint8": "U8"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """A body, in parts that share the arrays' memory, and headers that belong to it."""

    parts: list[Part]
    headers: dict[str, str] = field(default_factory=dict)


def write_tensors(document: dict[str, Any], arrays: Arrays, media_type: str) -> Written:
    """An answer in one of the formats that hold tensors.

    Args:
        document: its JSON part.
        arrays: by name, of the types in `DATATYPES`.
        media_type: one of `negotiation.TENSORS`.
    """
    return {SAFETENSORS: _write_safetensors, NPZ: _write_npz, BINARY: _write_binary}[media_type](document, arrays)


def _write_safetensors(document: dict[str, Any], arrays: Arrays) -> Written:
    """Eight bytes of length, a JSON header of that length, and the tensors.

    The library's writer copies every tensor twice, for a body that is then copied to be compressed.
    """
    header: dict[str, Any] = {"__metadata__": {ANSWER: _dump(document).decode()}}
    # Wider types first, so that every tensor is aligned.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    place = 0
    for name, array in ordered:
        end = place + array.nbytes
        dtype = SAFETENSORS_TYPES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [place, end]}
        place = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    return Written(parts=[struct.pack("<Q", len(text)), text, *(_view(array) for _, array in ordered)])


def _write_npz(document: dict[str, Any], arrays: Arrays) -> Written:
    buffer = io.BytesIO()
    # Not compressed: `savez_compressed` takes ten times the time of zstd for the same bytes.
    np.savez(buffer, **{ANSWER: np.frombuffer(_dump(document), np.uint8), **arrays})  # type: ignore[arg-type]
    return Written(parts=[buffer.getbuffer()])


def _write_binary(document: dict[str, Any], arrays: Arrays) -> Written:
    """The Open Inference Protocol's binary extension: JSON, whose length is in a header, and the tensors."""
    outputs = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    named = {"model_name": document["model"], "model_version": str(document["version"])}
    text = _dump({**named, **document, "outputs": outputs})
    return Written(parts=[text, *(_view(array) for array in arrays.values())], headers={HEADER: str(len(text))})


def _view(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, row by row and little-endian."""
    little = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, little).reshape(-1).view(np.uint8).data


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
