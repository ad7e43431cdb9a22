"""Tensors of the Open Inference Protocol v2: JSON, and the binary tensor extension, both ways.

A binary body is JSON, `Inference-Header-Content-Length` bytes of it, and then the tensors' bytes, one after the other
in the order in which the JSON names them: little-endian, row by row; text as 4 bytes of length and UTF-8, each.
Source: https://github.com/kserve/open-inference-protocol and Triton's protocol/extension_binary_data.md.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from attnserve.service.problems import BadRequest, Invalid
from attnserve.service.selection import describe

HEADER = "Inference-Header-Content-Length"
NUMPY_TYPES = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}
MAX_AXES = 8


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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An output that was asked for."""

    name: str
    is_binary: bool


# Without a repr: inputs are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Request:
    """The body of an infer request."""

    id: str | None
    parameters: dict[str, Any]
    inputs: dict[str, NDArray[Any]]
    """By name, in their shapes; texts as an array of objects."""
    outputs: list[Wanted] | None
    """None: the answer's default ones, binary if `is_binary`."""
    is_binary: bool


def parse_request(body: bytes, header_length: str | None, specs: Sequence[Spec]) -> Request:
    """Read the body of an infer request.

    Args:
        body: whole.
        header_length: value of the header `HEADER`; None if the body is JSON alone.
        specs: of the model's inputs.

    Raises:
        BadRequest: not JSON, not the protocol's, or tensors that do not fit what the JSON says of them.
        Invalid: a tensor of another datatype, shape or content than the model's.
    """
    size = _parse_header_length(header_length, len(body))
    document = _parse_json(body[:size])
    known = {spec.name: spec for spec in specs}
    inputs = _get(document, "inputs", list, required=True)
    arrays: dict[str, NDArray[Any]] = {}
    place = size
    for index, tensor in enumerate(inputs):
        field = f"inputs[{index}]"
        if not isinstance(tensor, dict):
            raise BadRequest.about(field, f"expected an object, got {describe(tensor)}")
        name = _get(tensor, "name", str, required=True, prefix=f"{field}.")
        if name not in known:
            raise BadRequest.about(f"{field}.name", f"expected one of {', '.join(known)}, got {name[:64]!r}")
        if name in arrays:
            raise BadRequest.about(f"{field}.name", f"expected each input once, got {name} again")
        num_bytes = _get(tensor, "parameters", dict, prefix=f"{field}.").get("binary_data_size")
        raw = None
        if num_bytes is not None:
            if type(num_bytes) is not int or not 0 <= num_bytes <= len(body) - place:
                left = f"an integer from 0 to {len(body) - place}, the bytes that are left"
                raise BadRequest.about(
                    f"{field}.parameters.binary_data_size", f"expected {left}, got {num_bytes!r:.24}"
                )
            raw = body[place : place + num_bytes]
            place += num_bytes
        arrays[name] = _read_tensor(tensor, raw, known[name], field)
    if place != len(body):
        raise BadRequest.about("body", f"expected {place} bytes, as its JSON says, got {len(body)}")
    for spec in specs:
        if spec.name not in arrays and not spec.is_optional:
            raise BadRequest.about("inputs", f"{spec.name}: missing; expected {spec.datatype} {list(spec.shape)}")
    parameters = _get(document, "parameters", dict)
    is_binary = parameters.get("binary_data_output", False) is True
    return Request(
        id=_get(document, "id", str) if "id" in document else None,
        parameters=parameters,
        inputs=arrays,
        outputs=_parse_outputs(document, is_binary) if document.get("outputs") else None,
        is_binary=is_binary,
    )


def render_tensor(name: str, array: NDArray[Any], *, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    """What the JSON says of an output, and its bytes if it is binary."""
    entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    flat = np.ascontiguousarray(array, "<f4").reshape(-1)
    if is_binary:
        return {**entry, "parameters": {"binary_data_size": flat.nbytes}}, flat.tobytes()
    return {**entry, "data": flat}, b""


def _parse_header_length(value: str | None, num_bytes: int) -> int:
    if value is None:
        return num_bytes
    if not value.isascii() or not value.isdecimal() or int(value[:18]) > num_bytes:
        raise BadRequest.about(
            HEADER, f"expected an integer from 0 to {num_bytes}, the size of the body, got {value[:24]!r}"
        )
    return int(value)


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise BadRequest.about("body", f"expected JSON, got something else at {place}: {error.msg}") from None
    if not isinstance(document, dict):
        raise BadRequest.about("body", f"expected a JSON object, got {describe(document)}")
    return document


def _parse_outputs(document: dict[str, Any], is_binary: bool) -> list[Wanted]:
    wanted = []
    for index, output in enumerate(_get(document, "outputs", list)):
        field = f"outputs[{index}]"
        if not isinstance(output, dict):
            raise BadRequest.about(field, f"expected an object, got {describe(output)}")
        parameters = _get(output, "parameters", dict, prefix=f"{field}.")
        wanted.append(
            Wanted(
                name=_get(output, "name", str, required=True, prefix=f"{field}."),
                is_binary=parameters.get("binary_data", is_binary) is True,
            )
        )
    return wanted


def _get(document: dict[str, Any], name: str, kind: type, *, required: bool = False, prefix: str = "") -> Any:
    words = {list: "a list", dict: "an object", str: "a string"}
    if name not in document and not required:
        return kind()
    if name not in document:
        raise BadRequest.about(f"{prefix}{name}", f"missing; expected {words[kind]}")
    if not isinstance(document[name], kind):
        raise BadRequest.about(f"{prefix}{name}", f"expected {words[kind]}, got {describe(document[name])}")
    return document[name]


def _read_tensor(tensor: dict[str, Any], raw: bytes | None, spec: Spec, field: str) -> NDArray[Any]:
    datatype = _get(tensor, "datatype", str, required=True, prefix=f"{field}.")
    if datatype != spec.datatype:
        raise Invalid.about(f"{field}.datatype", f"expected {spec.datatype}, got {datatype[:24]!r}")
    shape = _get(tensor, "shape", list, required=True, prefix=f"{field}.")
    if len(shape) > MAX_AXES or any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise BadRequest.about(f"{field}.shape", "expected a list of integers >= 0, got others")
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, size) for size, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise Invalid.about(f"{field}.shape", f"expected {list(spec.shape)}, got {shape}")
    count = math.prod(shape)
    if raw is None:
        values = _flatten(_get(tensor, "data", list, required=True, prefix=f"{field}."), field)
        if len(values) != count:
            raise BadRequest.about(f"{field}.data", f"expected {count} elements, as its shape says, got {len(values)}")
        return _to_array(values, spec, field).reshape(shape)
    if spec.datatype == "BYTES":
        return _read_texts(raw, count, field).reshape(shape)
    array = np.dtype(NUMPY_TYPES[spec.datatype])
    if len(raw) != count * array.itemsize:
        expected = f"{count * array.itemsize}, as its shape says"
        raise BadRequest.about(f"{field}.parameters.binary_data_size", f"expected {expected}, got {len(raw)}")
    return np.frombuffer(raw, array).reshape(shape)


def _flatten(data: list[Any], field: str) -> list[Any]:
    """Row-major elements of flat or nested lists; the protocol allows both."""
    for _ in range(MAX_AXES):
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if kinds != {list}:
            break
        data = [item for row in data for item in row]
    raise BadRequest.about(f"{field}.data", "expected a flat list, or lists nested as the shape says, got others")


def _to_array(values: list[Any], spec: Spec, field: str) -> NDArray[Any]:
    kinds = set(map(type, values))
    allowed = {"BYTES": {str}, "FP32": {int, float}}.get(spec.datatype, {int})
    if not kinds <= allowed:
        wrong = next(item for item in values if type(item) not in allowed)
        what = {"BYTES": "texts", "FP32": "numbers"}.get(spec.datatype, "integers")
        raise Invalid.about(f"{field}.data", f"expected {what}, got {describe(wrong)} among them")
    if spec.datatype == "BYTES":
        return np.array(values, object)
    try:
        with np.errstate(over="ignore"):
            return np.array(values, NUMPY_TYPES[spec.datatype])
    except OverflowError:
        raise Invalid.about(f"{field}.data", f"expected numbers that fit {spec.datatype}, got larger ones") from None


def _read_texts(raw: bytes, count: int, field: str) -> NDArray[Any]:
    texts: list[str] = []
    place = 0
    while place < len(raw) and len(texts) < count:
        if place + 4 > len(raw):
            break
        (size,) = struct.unpack_from("<I", raw, place)
        end = place + 4 + size
        if end > len(raw):
            break
        try:
            texts.append(raw[place + 4 : end].decode())
        except UnicodeDecodeError:
            raise Invalid.about(f"{field}[{len(texts)}]", "expected UTF-8, got other bytes") from None
        place = end
    if place != len(raw) or len(texts) != count:
        raise BadRequest.about(field, f"expected {count} texts, each 4 bytes of length and that many bytes, got others")
    return np.array(texts, object)
