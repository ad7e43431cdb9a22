"""What a request to capture asks for."""

from dataclasses import dataclass
from typing import Any

from attnserve.service.captures.capture import STORES
from attnserve.service.preprocess import PredictRequest, check_fields, parse_fields, parse_request
from attnserve.service.problems import Invalid
from attnserve.service.selection import describe, parse_choice, parse_indices
from attnserve.service.sequences import Reader

FIELDS = ("layers", "store", "keep_seconds")
NULLABLE = ("top_k", "positions", "timeout_ms", "keep_seconds")


@dataclass(frozen=True, kw_only=True)
class CaptureRequest:
    """A request whose every field has been checked."""

    predict: PredictRequest
    """Of one sequence."""
    layers: list[int]
    """To be kept, ascending."""
    store: str
    """One of `STORES`."""
    keep_seconds: float | None
    """None is as long as the service keeps captures."""


def parse_capture(body: bytes, reader: Reader) -> CaptureRequest:
    """Check the body of `POST .../captures`; raises as `parse_predict`."""
    document = parse_fields(body, NULLABLE)
    check_fields(document, ("sequences", "top_k", "positions", "timeout_ms", *FIELDS))
    predict = parse_request(document, reader, None, "")
    if len(predict.inputs) > 1:
        raise Invalid.about("sequences", f"a capture is of one sequence, got {len(predict.inputs)}")
    layers = parse_indices(document.get("layers", "all"), "layers", len(reader.manifest.layers), "layers")
    return CaptureRequest(
        predict=predict,
        layers=sorted(set(layers.tolist())),
        store=parse_choice(document, "store", STORES, ""),
        keep_seconds=_parse_seconds(document),
    )


def check_seconds(wanted: float | None, longest: float) -> float:
    """Seconds to keep a capture.

    Raises:
        Invalid: more than the service keeps any.
    """
    if wanted is not None and wanted > longest:
        raise Invalid.about("keep_seconds", f"expected at most {longest:g}, got {wanted:g}")
    return longest if wanted is None else wanted


def _parse_seconds(document: dict[str, Any]) -> float | None:
    value = document.get("keep_seconds")
    if value is None:
        return None
    if type(value) not in (int, float) or not value >= 1:
        raise Invalid.about("keep_seconds", f"expected a number >= 1, got {describe(value)}")
    return float(value)
