"""Models as the protocol's other routes show them: metadata, configuration and statistics."""

from collections.abc import Iterable
from typing import Any

from attnserve.service.model import ServedModel
from attnserve.service.oip.mapping import input_specs, optional_outputs, output_spec
from attnserve.service.oip.tensors import Spec

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


def describe_statistics(models: Iterable[ServedModel]) -> dict[str, Any]:
    """Answer of `GET /v2/models/stats` and of that of one model."""
    rows = [{"name": model.name, "version": str(model.version), **model.statistics.describe()} for model in models]
    return {"model_stats": rows}


def _configure(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": CONFIG_TYPES[spec.datatype], "dims": list(spec.shape)}
