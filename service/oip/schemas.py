"""Bodies and answers of the protocol's routes, for OpenAPI and its examples."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from attnserve.service.oip.answer import BINARY
from attnserve.service.openapi import ASKING, describe_answer
from attnserve.service.problems import (
    BadRequest,
    Conflict,
    NotAcceptable,
    NotFound,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)


class InputTensor(BaseModel):
    """One input; its bytes follow the JSON if `parameters` has `binary_data_size`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field({}, description="`binary_data_size`: bytes of this tensor after the JSON.")
    data: list[Any] | None = Field(None, description="Elements row by row, flat or nested as the shape says.")


class OutputTensor(BaseModel):
    """An output wanted, or given."""

    name: str
    datatype: str | None = None
    shape: list[int] | None = None
    parameters: dict[str, Any] = Field({}, description="`binary_data`: whether it is wanted as bytes.")
    data: list[Any] | None = None


class InferBody(BaseModel):
    """Body of `POST /v2/models/{model}/infer`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 4], "data": [3, 1, 4, 1]}]},
                {
                    "id": "two of different lengths",
                    "inputs": [
                        {"name": "tokens", "datatype": "INT64", "shape": [2, 3], "data": [[3, 1, 4], [1, 0, 0]]},
                        {"name": "lengths", "datatype": "INT64", "shape": [2], "data": [3, 1]},
                    ],
                    "outputs": [{"name": "logits"}, {"name": "layers.0.weights"}],
                },
            ]
        }
    )

    id: str | None = Field(None, description="Returned with the answer.")
    parameters: dict[str, Any] = Field(
        {},
        description='`positions`: "last" or "all" steps of every sequence; `binary_data_output`: outputs as bytes '
        "unless they say otherwise.",
    )
    inputs: list[InputTensor]
    outputs: list[OutputTensor] | None = Field(None, description="The logits alone, unless named.")


class IndexBody(BaseModel):
    """Body of `POST /v2/repository/index`; none at all means every model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"ready": True}]})

    ready: bool = Field(False, description="Only models that answer.")


class LoadBody(BaseModel):
    """Body of `POST /v2/repository/models/{model}/load`; none at all means the newest version."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"parameters": {"version": 1}}]})

    parameters: dict[str, Any] = Field({}, description="`version`: which one; the newest unless named.")


class UnloadBody(BaseModel):
    """Body of `POST /v2/repository/models/{model}/unload`; may be left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    parameters: dict[str, Any] = Field({}, description="Taken, and of no effect: models depend on nothing.")


METADATA = {
    "name": "nt-expressive",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [
        {"name": "tokens", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "lengths", "datatype": "INT64", "shape": [-1]},
    ],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, -1, 8]}],
    "parameters": {
        "optional_outputs": [{"name": "layers.0.weights", "datatype": "FP32", "shape": [-1, 1, -1, -1]}],
    },
}
INFERRED = {
    "model_name": "nt-expressive",
    "model_version": "1",
    "parameters": {},
    "outputs": [
        {
            "name": "logits",
            "datatype": "FP32",
            "shape": [1, 1, 8],
            "data": [-0.4403994, -8.51609, 13.68399, -4.694891, 0.03773723, 1.078553, 0.5309077, -0.4125255],
        }
    ],
}
CONFIG = {
    "name": "nt-expressive",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "max_batch_size": 0,
    "input": [
        {"name": "tokens", "data_type": "TYPE_INT64", "dims": [-1, -1]},
        {"name": "lengths", "data_type": "TYPE_INT64", "dims": [-1], "optional": True},
    ],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, -1, 8]}],
}
INDEX = [
    {"name": "nt-expressive", "version": "1", "state": "READY", "reason": ""},
    {"name": "nt-unfinished", "version": "1", "state": "UNAVAILABLE", "reason": "version 1 cannot be served: damaged"},
]
STATISTICS = {
    "model_stats": [
        {
            "name": "nt-expressive",
            "version": "1",
            "last_inference": 1795348800000,
            "inference_count": 2,
            "execution_count": 1,
            "inference_stats": {
                "success": {"count": 1, "ns": 1_200_000},
                "fail": {"count": 0, "ns": 0},
                "queue": {"count": 2, "ns": 80_000},
                "compute_input": {"count": 1, "ns": 40_000},
                "compute_infer": {"count": 1, "ns": 300_000},
                "compute_output": {"count": 1, "ns": 90_000},
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [
                {
                    "batch_size": 2,
                    "compute_infer": {"count": 1, "ns": 300_000},
                    "compute_input": {"count": 1, "ns": 40_000},
                }
            ],
        }
    ]
}
ASKING_TENSORS = [problem for problem in ASKING if problem is not NotAcceptable]

SERVER_ANSWERS = describe_answer(
    {
        "name": "attnserve",
        "version": "0.1.0",
        "extensions": ["binary_tensor_data", "parameters", "model_configuration", "model_repository", "statistics"],
    }
)
LIVE_ANSWERS = describe_answer({"live": True})
SERVER_READY_ANSWERS = describe_answer({"ready": True}, Unavailable)
METADATA_ANSWERS = describe_answer(METADATA, NotFound, Unavailable)
CONFIG_ANSWERS = describe_answer(CONFIG, NotFound, Unavailable)
INDEX_ANSWERS = describe_answer(INDEX, BadRequest, TooLarge, UnsupportedMediaType)
CHANGING = (BadRequest, NotFound, Conflict, TooLarge, UnsupportedMediaType)
LOAD_ANSWERS = describe_answer({"name": "nt-expressive", "version": "1", "state": "READY"}, *CHANGING)
UNLOAD_ANSWERS = describe_answer({"name": "nt-expressive", "state": "UNAVAILABLE"}, *CHANGING)
STATISTICS_ANSWERS = describe_answer(STATISTICS, NotFound, Unavailable)
ALL_STATISTICS_ANSWERS = describe_answer(STATISTICS)
MODEL_READY_ANSWERS = describe_answer({"name": "nt-expressive", "ready": True}, NotFound, Unavailable)
INFER_ANSWERS = describe_answer(INFERRED, *ASKING_TENSORS, formats=(BINARY,))
