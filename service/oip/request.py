"""Requests of the Open Inference Protocol v2: JSON, and the binary tensor extension.

A binary body is JSON, `Inference-Header-Content-Length` bytes of it, and then the tensors' bytes, one after the other
in the order in which the JSON names them. With a length of 0 there is no JSON: the body is one sequence.
Source: https://github.com/kserve/open-inference-protocol and Triton's protocol/extension_binary_data.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from attnserve.service.oip.tensors import Spec, get_field, read_raw, read_tensor
from attnserve.service.preprocess import parse_object
from attnserve.service.problems import BadRequest
from attnserve.service.selection import describe

HEADER = "Inference-Header-Content-Length"
MAX_ID = 1024
# Another answer than the one asked for would be no answer. Other parameters that are not known change nothing.
REFUSED = ("shared_memory_region", "classification")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An output that was asked for."""

    spec: Spec
    is_binary: bool


# Without a repr: inputs are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Request:
    """The body of an infer request."""

    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, NDArray[Any]]
    """By name, in their shapes; texts as an array of objects. They share the memory of the body."""
    outputs: list[Wanted]


def parse_request(body: bytes, header_length: str | None, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Request:
    """Read the body of an infer request.

    Args:
        body: whole.
        header_length: value of the header `HEADER`; None if the body is JSON alone.
        inputs: of the model. A body without JSON is the first one.
        outputs: of the model; the first is what it answers unless others are named.

    Raises:
        BadRequest: not JSON, not the protocol's, or tensors that are not the model's or not what the JSON says of them.
        Invalid: a number that its datatype cannot hold.
        TooLarge: more sequences than a request may have.
    """
    size = _parse_header_length(header_length, len(body))
    if header_length is not None and size == 0:
        spec = inputs[0]
        return Request(inputs={spec.name: read_raw(body, spec)}, outputs=[Wanted(spec=outputs[0], is_binary=True)])
    document = parse_object(body[:size])
    parameters = get_field(document, "parameters", dict, {})
    is_binary = get_field(parameters, "binary_data_output", bool, False, "parameters.")
    identity = get_field(document, "id", str, None)
    if identity is not None and len(identity) > MAX_ID:
        raise BadRequest.about("id", f"expected at most {MAX_ID} characters, got {len(identity)}")
    return Request(
        id=identity,
        parameters=parameters,
        inputs=_parse_inputs(document, memoryview(body)[size:], {spec.name: spec for spec in inputs}),
        outputs=_parse_outputs(document, {spec.name: spec for spec in outputs}, is_binary)
        or [Wanted(spec=outputs[0], is_binary=is_binary)],
    )


def _parse_header_length(value: str | None, num_bytes: int) -> int:
    if value is None:
        return num_bytes
    if not value.isascii() or not value.isdecimal() or len(value) > 18 or int(value) > num_bytes:
        expected = f"an integer from 0 to {num_bytes}, the size of the body"
        raise BadRequest.about(HEADER, f"expected {expected}, got {value[:24]!r}")
    return int(value)


def _parse_inputs(document: dict[str, Any], binary: memoryview, specs: Mapping[str, Spec]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for index, tensor in enumerate(get_field(document, "inputs", list)):
        prefix = f"inputs[{index}]."
        spec = _find_spec(tensor, prefix, specs, arrays)
        parameters = _get_parameters(tensor, prefix)
        raw = None
        if "binary_data_size" in parameters:
            num_bytes, left = parameters["binary_data_size"], len(binary) - place
            if type(num_bytes) is not int or not 0 <= num_bytes <= left:
                message = f"expected an integer from 0 to {left}, the bytes that are left, got {describe(num_bytes)}"
                raise BadRequest.about(f"{prefix}parameters.binary_data_size", message)
            raw = binary[place : place + num_bytes]
            place += num_bytes
        arrays[spec.name] = read_tensor(tensor, raw, spec, prefix)
    if place != len(binary):
        message = f"expected {place} bytes after the JSON, which is what its tensors take, got {len(binary)}"
        raise BadRequest.about("body", message)
    for spec in specs.values():
        if spec.name not in arrays and not spec.is_optional:
            raise BadRequest.about("inputs", f"{spec.name}: missing; expected {spec.datatype} {list(spec.shape)}")
    return arrays


def _parse_outputs(document: dict[str, Any], specs: Mapping[str, Spec], is_binary: bool) -> list[Wanted]:
    wanted: dict[str, Wanted] = {}
    for index, output in enumerate(get_field(document, "outputs", list, [])):
        prefix = f"outputs[{index}]."
        spec = _find_spec(output, prefix, specs, wanted)
        parameters = _get_parameters(output, prefix)
        is_this_binary = get_field(parameters, "binary_data", bool, is_binary, f"{prefix}parameters.")
        wanted[spec.name] = Wanted(spec=spec, is_binary=is_this_binary)
    return list(wanted.values())


def _find_spec(tensor: Any, prefix: str, specs: Mapping[str, Spec], seen: Mapping[str, object]) -> Spec:
    if not isinstance(tensor, dict):
        raise BadRequest.about(prefix[:-1], f"expected an object, got {describe(tensor)}")
    name = get_field(tensor, "name", str, prefix=prefix)
    if name not in specs:
        # A model has six outputs per layer and more: naming a few of them shows how they are called.
        shown = ", ".join(list(specs)[:8]) + (f" and {len(specs) - 8} more" if len(specs) > 8 else "")
        raise BadRequest.about(f"{prefix}name", f"expected one of {shown}, got {name[:64]!r}")
    if name in seen:
        raise BadRequest.about(f"{prefix}name", f"expected each tensor once, got {name} again")
    return specs[name]


def _get_parameters(tensor: dict[str, Any], prefix: str) -> dict[str, Any]:
    parameters: dict[str, Any] = get_field(tensor, "parameters", dict, {}, prefix)
    for name in REFUSED:
        if name in parameters:
            raise BadRequest.about(f"{prefix}parameters.{name}", "this server has no such extension; expected none")
    return parameters
