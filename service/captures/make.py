"""From a forward pass to a capture."""

import datetime
from typing import Any

import orjson

from attnserve.service.answer import describe_answer
from attnserve.service.captures.capture import Capture, KeptLayer, RowError, keep_layers
from attnserve.service.captures.identity import CaptureId
from attnserve.service.captures.pyramid import Pyramid
from attnserve.service.captures.request import CaptureRequest
from attnserve.service.job import Answer
from attnserve.service.model import ServedModel
from attnserve.service.prediction import check_finite


def make_capture(
    model: ServedModel, asked: CaptureRequest, answer: Answer, identity: CaptureId, owner: bytes | None
) -> Capture:
    """Keep what a forward pass captured.

    Args:
        model: that ran.
        asked: what the request asks for.
        answer: to its sequence, with the outputs that `outputs_of` names.
        identity: of the new capture.
        owner: digest of the key that may see it.

    Raises:
        Invalid: the model overflows on the sequence, or float16 does on its queries and keys.
    """
    check_finite([answer])
    weighing, manifest = model.engine.runtime.weighing, model.manifest
    layers, row_error = keep_layers(manifest, weighing, asked.layers, answer, asked.store)
    document = {
        "id": str(identity),
        "expires": f"{datetime.datetime.fromtimestamp(identity.expires, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        **describe_answer(model.name, model.version, model.reader, asked.predict, [answer]),
        "tokens": [model.reader.list_tokens(read) for read in asked.predict.inputs],
        **_describe_layers(layers, causal=manifest.causal),
        **_describe_store(layers, row_error),
    }
    return Capture(
        id=identity,
        owner=owner,
        model=model.name,
        version=model.version,
        weighing=weighing,
        reader=model.reader,
        asked=asked.predict,
        layers=layers,
        row_error=row_error,
        description=orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY),
    )


def _describe_layers(layers: dict[int, KeptLayer], *, causal: bool) -> dict[str, Any]:
    kept = list(layers.values())
    length = kept[0].query.shape[1]
    return {
        "causal": causal,
        "layers": list(layers),
        "variants": [one.layer.variant for one in kept],
        "num_heads": kept[0].layer.num_heads,
        "length": length,
        "num_zooms": Pyramid(length).num_zooms,
        "metric": [one.metric for one in kept],
    }


def _describe_store(layers: dict[int, KeptLayer], row_error: RowError | None) -> dict[str, Any]:
    first = next(iter(layers.values()))
    return {
        "dtype": first.query.dtype.name,
        "num_bytes": sum(layer.num_bytes for layer in layers.values()),
        "max_row_error": 0.0 if row_error is None else row_error.value,
        "measured_rows": None if row_error is None else row_error.num_rows,
    }
