"""Request and response bodies, for OpenAPI and its examples. Requests are checked in `preprocess`, not here."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnserve.service.preprocess import DEFAULT_TOP_K
from attnserve.service.selection import DEFAULT_DIAGNOSTICS, DIAGNOSTICS

Indices = Literal["all"] | list[int]
Steps = Literal["all", "last"] | list[int]


class Selection(BaseModel):
    """Which part of the attention is wanted. Indices count from 0; negative ones from the end."""

    layers: Indices = Field("all", description="Layers, in the order wanted.")
    heads: Indices = Field("all", description="Heads, in the order wanted.")
    queries: Steps = Field("all", description="Query rows of every sequence.")
    quantity: Literal["diagnostics", "weights"] = Field(
        "diagnostics", description="A table of measures per head, or the weights themselves."
    )
    diagnostics: list[str] = Field(
        list(DEFAULT_DIAGNOSTICS), description=f"Measures to compute, of {', '.join(DIAGNOSTICS)}."
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="Type of binary answers.")


class Predict(BaseModel):
    """Body of `POST /v1/models/{model}/predict`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]], "top_k": 3, "positions": "last"},
                {"sequences": [[3, 1, 4], [1, 5]], "attention": {"layers": [-1], "queries": "last"}},
            ]
        }
    )

    sequences: list[list[int] | list[str]] = Field(
        description="Token ids, or labels; a sequence is either all ids or all labels."
    )
    top_k: int = Field(DEFAULT_TOP_K, ge=1, description="Entries per position, at most the vocabulary.")
    positions: Steps = Field("last", description="Steps of every sequence to predict from.")
    attention: Selection | None = Field(None, description="Attention to return with the predictions.")


class AttentionBody(Selection):
    """Body of `POST /v1/models/{model}/attention`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]], "top_k": 3},
                {"sequences": [[3, 1, 4]], "layers": [0], "heads": [0], "queries": "last", "quantity": "weights"},
            ]
        }
    )

    sequences: list[list[int] | list[str]] = Field(description="Token ids, or labels.")
    top_k: int = Field(DEFAULT_TOP_K, ge=1, description="Entries per predicted position.")
    positions: Steps = Field("last", description="Steps of every sequence to predict from.")


class Entry(BaseModel):
    """One candidate for the next token."""

    id: int
    label: str | None
    probability: float
    logit: float


class Prediction(BaseModel):
    """The predictions of one sequence."""

    positions: list[int]
    top: list[list[Entry]] = Field(description="Per position, by falling logit.")


class Diagnostics(BaseModel):
    """Measures of one head, averaged over the query rows asked for; definitions in docs/api.md."""

    sequence: int
    layer: int
    head: int
    variant: str
    entropy_bits: float | None = None
    entropy_normalised: float | None = None
    distance: float | None = None
    sink: float | None = None
    previous_token: float | None = None
    self: float | None = None
    received: list[float | None] | None = None


class Map(BaseModel):
    """Weights of one head: one row per query, one number per key; keys that may not be seen are exactly 0."""

    sequence: int
    layer: int
    head: int
    queries: list[int]
    weights: list[list[float]]


class PredictAnswer(BaseModel):
    """Answer of `predict`; the fields after `warnings` only when attention was asked for."""

    model: str
    version: int
    predictions: list[Prediction]
    warnings: list[str]
    quantity: str | None = None
    causal: bool | None = None
    tokens: list[list[int]] | None = None
    layers: list[int] | None = None
    variants: list[str] | None = Field(None, description="Variant of each layer in `layers`.")
    heads: list[int] | None = None
    queries: list[list[int]] | None = Field(None, description="Absolute query steps per sequence.")
    diagnostics: list[Diagnostics] | None = None
    maps: list[Map] | None = None


class FaultBody(BaseModel):
    """One thing wrong with a request."""

    field: str
    message: str


class ProblemBody(BaseModel):
    """Every error: RFC 9457 problem details, plus `error` for Open Inference Protocol clients."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    errors: list[FaultBody]


class ModelBody(BaseModel):
    """A model and what is known of it."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int | None = None
    versions: list[int]
    ready: bool
    reason: str | None = Field(None, description="Why it does not answer.")
    task: str | None = None
    card: dict[str, Any] | None = None


class ModelList(BaseModel):
    """Every model of the repository, by name."""

    models: list[ModelBody]
