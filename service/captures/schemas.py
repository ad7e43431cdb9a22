"""Captures for OpenAPI: bodies, parameters and answers, with examples that work."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnserve.service.captures.question import KNOWN
from attnserve.service.captures.routing import FORMAT, NAMES
from attnserve.service.formats.coding import CODINGS
from attnserve.service.formats.negotiation import FORMATS, PNG, TENSORS
from attnserve.service.openapi import ASKING, PREDICTED, describe_answer, describe_removal
from attnserve.service.problems import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Gone,
    InternalError,
    Invalid,
    NotAcceptable,
    NotFound,
    Overloaded,
    TooLarge,
)
from attnserve.service.question_schemas import Indices, Prediction, Sequences, Steps, Token
from attnserve.service.schemas import READS, TIMEOUT

PARAMETERS = {
    "dtype": "Type of the numbers in tensors, as in the attention route.",
    FORMAT: f"{', '.join(NAMES)}; instead of Accept, for links.",
    "queries": 'Query steps: "last", "all", a slice as 2:5, or indices as 0,-1.',
    "layers": 'Layers: "all" that were captured, a slice as 2:5, or indices as 0,-1.',
    "heads": 'Heads: "all", a slice as 2:5, or indices as 0,-1.',
}
ID = "abababababababababababababababab.nexzouwdpk6ltm7o"


class CaptureBody(BaseModel):
    """Body of `POST /v1/models/{model}/captures`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]]},
                {"sequences": [[3, 1, 4]], "top_k": 1, "layers": [-1], "store": "float16", "keep_seconds": 60},
            ]
        }
    )

    sequences: Sequences = Field(description=f"Exactly one. {READS}")
    top_k: int | None = Field(None, ge=1, description="Entries per predicted position, as in predict.")
    positions: Steps | None = Field(None, description="Steps to predict from, as in predict.")
    timeout_ms: float | None = Field(None, gt=0, description=TIMEOUT)
    layers: Indices = Field("all", description="Layers to keep; maps of others cannot be asked for.")
    store: Literal["computed", "float16"] = Field(
        "computed",
        description="How queries and keys are kept: as the model computed them, or in half of that, at the cost of the "
        "error that the answer says.",
    )
    keep_seconds: float | None = Field(
        None, ge=1, description="Until the capture ends; at most, and unless given, as long as the service keeps any."
    )


class CaptureAnswer(BaseModel):
    """A capture."""

    id: str = Field(description="For the paths of everything that can be asked of it.")
    expires: str = Field(description="When it ends, in UTC.")
    model: str
    version: int
    predictions: list[Prediction]
    warnings: list[str]
    tokens: list[list[Token]]
    causal: bool
    layers: list[int] = Field(description="That were kept.")
    variants: list[str] = Field(description="Of each of them.")
    num_heads: int
    length: int = Field(description="Steps, a leading row included.")
    num_zooms: int = Field(description="Levels of the pyramid of tiles; the last one has a cell per weight.")
    metric: list[list[list[float]] | None] = Field(
        description="Per layer, [key heads, channels] of the last step; null of variants that have none."
    )
    dtype: str = Field(description="Of the queries and keys that are kept.")
    num_bytes: int = Field(description="Memory that it takes.")
    max_row_error: float = Field(description="Half the L1 norm of what the worst of the measured rows lost by `store`.")
    measured_rows: int | None = Field(
        None, description="How many rows of every head that is of; null if nothing was lost."
    )


CAPTURED: dict[str, Any] = {
    "id": ID,
    "expires": "2026-12-01T12:05:00Z",
    **PREDICTED,
    "tokens": [[{"id": index, "text": f"s{index}", "span": None} for index in (3, 1, 4, 1, 5, 2, 6, 5)]],
    "causal": True,
    "layers": [0],
    "variants": ["expressive"],
    "num_heads": 1,
    "length": 8,
    "num_zooms": 1,
    "metric": [None],
    "dtype": "float32",
    "num_bytes": 2080,
    "max_row_error": 0.0,
    "measured_rows": None,
}
OF = {"capture": ID, "model": "nt-expressive", "version": 1}
VIEWED: dict[str, Any] = {**OF, "layer": 0, "head": 0, "queries": [0], "weights": [[1.0, 0, 0, 0, 0, 0, 0, 0]]}
QK: dict[str, Any] = {
    **OF,
    "layer": 0,
    "head": 0,
    "weighting": "expressive",
    "scale": 0.5,
    "epsilon": 0.0,
    "softcap": 0.0,
    "window": 0,
    "causal": True,
    "query": [[0.25, 0.5]],
    "key": [[1.0, -1.0]],
    "normaliser": [0.0038759690709412098],
    "value_norm": [1.0],
}

_PARTS = (NotFound, NotAcceptable, Gone, TooLarge, Invalid, Overloaded, InternalError, DeadlineExceeded)
CAPTURE_ANSWERS = describe_answer(CAPTURED, *ASKING, Conflict, status=201)
SHOW_ANSWERS = describe_answer(CAPTURED, *(problem for problem in _PARTS if problem is not TooLarge))
DELETE_ANSWERS = describe_removal(NotFound, Gone, InternalError)
ATTENTION_ANSWERS = describe_answer(
    {**OF, "warnings": [], "quantity": "diagnostics", "causal": True, "layers": [0], "variants": ["expressive"]},
    *_PARTS,
    Forbidden,
    formats=FORMATS[1:],
)
VIEW_ANSWERS = describe_answer(VIEWED, *_PARTS, formats=(*TENSORS, PNG))
QK_ANSWERS = describe_answer(QK, *_PARTS, Forbidden, formats=TENSORS)


def describe_query(names: Sequence[str]) -> dict[str, Any]:
    """`openapi_extra` of a route whose query has these parameters."""
    described = []
    for name in names:
        schema: dict[str, Any] = {"type": "string"}
        if name == FORMAT:
            schema["enum"] = list(NAMES)
        elif name == "dtype":
            schema["enum"] = list(CODINGS)
        text = PARAMETERS.get(
            name, f"As the field `{name}` of the attention route; lists with commas, objects as JSON."
        )
        described.append({"name": name, "in": "query", "required": False, "schema": schema, "description": text})
    return {"parameters": described}


ATTENTION_QUERY = describe_query(KNOWN)
ROWS_QUERY = describe_query(("queries", "dtype", FORMAT))
THUMBNAILS_QUERY = describe_query(("layers", "heads", "dtype", FORMAT))
TILE_QUERY = describe_query(("dtype", FORMAT))
SHOW_QUERY = describe_query((FORMAT,))
