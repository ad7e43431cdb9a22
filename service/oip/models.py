"""Models as the protocol's other routes show them: metadata, configuration and the index of the repository."""

from typing import Any

from attnserve.service.catalogue import Catalogue, ServedModel
from attnserve.service.oip.mapping import input_specs, optional_outputs, output_spec
from attnserve.service.oip.request import parse_json
from attnserve.service.oip.tensors import Spec, get_field

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
# Triton's names in model configurations.
CONFIG_TYPES = {"INT64": "TYPE_INT64", "FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}


def describe_metadata(model: ServedModel) -> dict[str, Any]:
    """Answer of `GET /v2/models/{model}`."""
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": PLATFORM,
        "inputs": [spec.describe() for spec in input_specs(model.reader)],
        "outputs": [output_spec(model.manifest).describe()],
        "parameters": {"optional_outputs": [spec.describe() for spec in optional_outputs(model.manifest)]},
    }


def describe_config(model: ServedModel) -> dict[str, Any]:
    """Answer of `GET /v2/models/{model}/config`: the fields of Triton's that are true here."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        # Shapes below are whole, the number of sequences included, as Triton has it for 0.
        "max_batch_size": 0,
        "input": [
            {**_configure(spec), **({"optional": True} if spec.is_optional else {})}
            for spec in input_specs(model.reader)
        ],
        "output": [_configure(output_spec(model.manifest))],
    }


def list_repository(catalogue: Catalogue, body: bytes) -> list[dict[str, str]]:
    """Answer of `POST /v2/repository/index`: a row per model, the version empty where none is served.

    Raises:
        BadRequest: the body is neither empty nor JSON with a boolean `ready`, if any.
    """
    only_ready = get_field(parse_json(body), "ready", bool, False) if body else False
    rows = []
    served = dict(catalogue.models)
    for name in catalogue.names:
        model = served.get(name)
        if model is not None and model.batcher.is_open:
            rows.append({"name": name, "version": str(model.version), "state": "READY", "reason": ""})
        elif not only_ready:
            is_loading = model is None and name not in catalogue.failures
            state = "LOADING" if is_loading else "UNAVAILABLE"
            rows.append({"name": name, "version": "", "state": state, "reason": catalogue.explain(name)})
    return rows


def _configure(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": CONFIG_TYPES[spec.datatype], "dims": list(spec.shape)}
