"""Tensors of the Open Inference Protocol v2: an element of a request or an answer, as JSON or as bytes.

Bytes are little-endian, row by row; texts are 4 bytes of length and UTF-8, each.
Source: https://github.com/kserve/open-inference-protocol and Triton's protocol/extension_binary_data.md.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.problems import BadRequest, Invalid, TooLarge
from attnserve.service.selection import MAX_ENTRIES, describe

NUMPY_TYPES = {"INT64": "<i8", "FP32": "<f4"}
JSON_TYPES: dict[str, set[type]] = {"INT64": {int}, "FP32": {int, float}, "BYTES": {str}}
JSON_WORDS = {"INT64": "integers", "FP32": "numbers", "BYTES": "texts"}
KINDS = {list: "a list", dict: "an object", str: "a string", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An input or output as metadata shows it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 where the size is free."""
    is_optional: bool = False

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def get_field(document: dict[str, Any], name: str, kind: type, default: Any = ..., prefix: str = "") -> Any:
    """A field of that kind; without a default it must be there.

    Raises:
        BadRequest: it is missing, or of another kind.
    """
    value = document.get(name, default)
    if value is ...:
        raise BadRequest.about(f"{prefix}{name}", f"missing; expected {KINDS[kind]}")
    if name in document and not isinstance(value, kind):
        raise BadRequest.about(f"{prefix}{name}", f"expected {KINDS[kind]}, got {describe(value)}")
    return value


def read_tensor(tensor: dict[str, Any], raw: memoryview | None, spec: Spec, prefix: str) -> NDArray[Any]:
    """An input in its shape; texts as an array of objects.

    Args:
        tensor: what the JSON says of it.
        raw: its bytes; None if it is in the JSON. The array shares their memory.
        spec: what it must be.
        prefix: put before the names of fields in complaints.

    Raises:
        BadRequest: not what the model reads, or not what the JSON says of it.
        Invalid: a number that its datatype cannot hold.
        TooLarge: more sequences than a request may have.
    """
    datatype = get_field(tensor, "datatype", str, prefix=prefix)
    if datatype != spec.datatype:
        raise BadRequest.about(f"{prefix}datatype", f"expected {spec.datatype}, got {datatype[:24]!r}")
    shape = get_field(tensor, "shape", list, prefix=prefix)
    # Sizes of 0 would leave the others free: an array of nothing may have 2^60 rows.
    fits = len(shape) == len(spec.shape) and all(
        type(size) is int and size > 0 and want in (-1, size) for size, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        got = ", ".join(str(size) if type(size) is int else describe(size) for size in shape[:8])
        expected = f"{list(spec.shape)}, where -1 is any size from 1"
        raise BadRequest.about(f"{prefix}shape", f"expected {expected}, got [{got}]")
    if shape[0] > MAX_ENTRIES:
        raise TooLarge.about(f"{prefix}shape", f"expected at most {MAX_ENTRIES} sequences, got {shape[0]}")
    if raw is None:
        values = _flatten(get_field(tensor, "data", list, prefix=prefix), shape, f"{prefix}data")
        return _to_array(values, spec, f"{prefix}data").reshape(shape)
    if "data" in tensor:
        raise BadRequest.about(f"{prefix}data", "expected none beside parameters.binary_data_size")
    if spec.datatype == "BYTES":
        return _read_texts(raw, shape[0], prefix[:-1])
    dtype = np.dtype(NUMPY_TYPES[spec.datatype])
    if len(raw) != math.prod(shape) * dtype.itemsize:
        expected = f"{math.prod(shape) * dtype.itemsize}, as its shape says"
        raise BadRequest.about(f"{prefix}parameters.binary_data_size", f"expected {expected}, got {len(raw)}")
    return np.frombuffer(raw, dtype).reshape(shape)


def read_raw(body: bytes, spec: Spec) -> NDArray[Any]:
    """A body without JSON: one sequence, or the UTF-8 of one text without its length.

    Raises:
        BadRequest: no such thing.
    """
    if spec.datatype == "BYTES":
        return np.array([_decode(body, "body")], object)
    shape = (1, -1, *spec.shape[2:])
    dtype = np.dtype(NUMPY_TYPES[spec.datatype])
    step_bytes = math.prod(shape[2:]) * dtype.itemsize
    if not body or len(body) % step_bytes:
        expected = f"one or more times {step_bytes} bytes, each a step of {spec.name}"
        raise BadRequest.about("body", f"expected {expected}, got {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape)


def render_tensor(name: str, array: NDArray[Any], *, is_binary: bool) -> tuple[dict[str, Any], memoryview | bytes]:
    """What the JSON says of an output, and its bytes if it is binary."""
    entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    flat = np.ascontiguousarray(array, "<f4").reshape(-1)
    if is_binary:
        return {**entry, "parameters": {"binary_data_size": flat.nbytes}}, flat.data.cast("B")
    return {**entry, "data": flat}, b""


def _flatten(data: list[Any], shape: list[int], field: str) -> list[Any]:
    """Elements row by row, of one flat list or of lists nested as the shape says; the protocol allows both."""
    count = math.prod(shape)
    rows = data
    for axis in range(len(shape) - 1):
        if list not in set(map(type, rows)):
            break
        if len(rows) != math.prod(shape[: axis + 1]) or any(
            type(row) is not list or len(row) != shape[axis + 1] for row in rows
        ):
            raise BadRequest.about(field, f"expected a flat list, or lists nested as the shape {shape}, got others")
        rows = [item for row in rows for item in row]
    if len(rows) != count:
        raise BadRequest.about(field, f"expected {count} elements, as its shape says, got {len(rows)}")
    return rows


def _to_array(values: list[Any], spec: Spec, field: str) -> NDArray[Any]:
    allowed = JSON_TYPES[spec.datatype]
    if not set(map(type, values)) <= allowed:
        place, wrong = next((place, item) for place, item in enumerate(values) if type(item) not in allowed)
        raise BadRequest.about(field, f"expected {JSON_WORDS[spec.datatype]}, got {describe(wrong)} as element {place}")
    if spec.datatype == "BYTES":
        return np.array(values, object)
    try:
        with np.errstate(over="ignore"):
            return np.array(values, NUMPY_TYPES[spec.datatype])
    except OverflowError:
        raise Invalid.about(field, f"expected numbers that fit {spec.datatype}, got larger ones") from None


def _read_texts(raw: memoryview, count: int, field: str) -> NDArray[Any]:
    texts: list[str] = []
    place = 0
    while len(texts) < count and place + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, place)
        place += 4 + size
        if place > len(raw):
            break
        texts.append(_decode(raw[place - size : place], f"{field}[{len(texts)}]"))
    if place != len(raw) or len(texts) != count:
        message = f"expected {count} texts, each 4 bytes of length and that many of UTF-8, got others"
        raise BadRequest.about(field, message)
    return np.array(texts, object)


def _decode(raw: bytes | memoryview, field: str) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise BadRequest.about(field, "expected UTF-8, got other bytes") from None
