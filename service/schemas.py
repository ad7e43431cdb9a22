"""Request and response bodies, for OpenAPI and its examples. Requests are checked in `preprocess`, not here."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from attnserve.service.continuation import MAX_SEED
from attnserve.service.preprocess import DEFAULT_TOP_K
from attnserve.service.question_schemas import (
    Ablation,
    Attended,
    AttentionFields,
    Comparison,
    Entry,
    Prediction,
    Sequences,
    Steps,
    Token,
)

TIMEOUT = "Answer within this time, or 504; the header Timeout-Ms says the same, and the shorter one counts."
READS = (
    "One item per sequence: token ids; labels, where the model has a label per id; a text, if the model reads text; "
    "or vectors of numbers, if it reads features."
)


class Predict(BaseModel):
    """Body of `POST /v1/models/{model}/predict`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]], "top_k": 3, "positions": "last"},
                {"sequences": [[3, 1, 4], [1, 5]], "attention": {"layers": [-1], "queries": "last"}},
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]], "continue": 4},
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]], "continue": 4, "temperature": 0.8, "top_k": 3, "seed": 1},
            ]
        }
    )

    sequences: Sequences = Field(description=READS)
    top_k: int | None = Field(
        None,
        ge=1,
        description=f"Entries per position, at most the classes; {DEFAULT_TOP_K} unless given. With `continue`, how "
        "many of the likeliest tokens are drawn from; all unless given.",
    )
    positions: Steps | None = Field(
        None,
        description='Steps of every sequence to predict from; "last" unless given, "all" if the task is '
        "classify_token. Not with classify_sequence, which answers once per sequence.",
    )
    attention: AttentionFields | None = Field(None, description="Attention to return with the predictions.")
    timeout_ms: float | None = Field(None, gt=0, description=TIMEOUT)
    num_tokens: int | None = Field(
        None,
        alias="continue",
        ge=1,
        description="Go on for this many tokens, each read by the model as its next input; next_token models only, and "
        "without `positions` and `attention`. With Accept: text/event-stream every token is sent when it is known.",
    )
    temperature: float | None = Field(
        None, ge=0, description="With `continue`: 0, or none, takes the likeliest token, else one is drawn at it."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=MAX_SEED,
        description="With `continue` and a temperature: draws with one seed are the same again. One is made up, and "
        "returned, unless given.",
    )


class AttentionBody(AttentionFields):
    """Body of `POST /v1/models/{model}/attention`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sequences": [[3, 1, 4, 1, 5, 2, 6, 5]], "top_k": 3},
                {"sequences": [[3, 1, 4]], "layers": [0], "heads": [0], "queries": "last", "quantity": "weights"},
                {"sequences": [[3, 1, 4, 1, 5]], "quantity": "rollout", "queries": "last", "top_keys": 3},
                {"sequences": [[3, 1, 4, 1, 5]], "diagnostics": "all", "ablate": [[0, 0]]},
            ]
        }
    )

    sequences: Sequences = Field(description=READS)
    top_k: int | None = Field(None, ge=1, description="Entries per predicted position, as in predict.")
    positions: Steps | None = Field(None, description="Steps of every sequence to predict from, as in predict.")
    timeout_ms: float | None = Field(None, gt=0, description=TIMEOUT)


class PredictAnswer(Attended):
    """Answer of `predict`; the fields after `tokens` only when attention was asked for."""

    model: str
    version: int
    predictions: list[Prediction]
    warnings: list[str]
    tokens: list[list[Token]] | None = Field(None, description="If a sequence was a text, or attention was asked for.")
    ablation: Ablation | None = None
    comparison: Comparison | None = None


class PlannedTensor(BaseModel):
    """A tensor that an answer would hold."""

    axes: list[str]
    shape: list[int]
    dtype: str
    bytes: int = Field(description="Before compression.")


class Refusals(BaseModel):
    """Why an answer would be refused; null if it would not."""

    json_: str | None = Field(alias="json")
    tensors: str | None


class Plan(BaseModel):
    """Answer to a question about attention with `dry_run`."""

    model: str
    version: int
    lengths: list[int] = Field(description="Steps of each sequence.")
    tensors: dict[str, PlannedTensor]
    num_numbers: int
    num_bytes: int
    num_weights: int = Field(description="Attention weights that are computed, shown or not.")
    held_bytes: int = Field(description="Memory that the request takes meanwhile.")
    num_passes: int = Field(description="Forward passes per sequence.")
    forward_seconds: float = Field(description="What they take, by the model's cost.")
    refused: Refusals


class Grown(BaseModel):
    """What one sequence was continued with."""

    steps: list[int]
    tokens: list[Entry] = Field(description="The token chosen at each step; its probability is at temperature 1.")
    text: str | None = Field(description="Null if the model has no text.")


class ContinueAnswer(BaseModel):
    """Answer of `predict` with `continue`."""

    model: str
    version: int
    continuations: list[Grown]
    seed: int | None = Field(description="Of the draws; null at temperature 0.")
    warnings: list[str]
    tokens: list[list[Token]] | None = None


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
    reason: str | None = Field(None, description="Why it does not answer, or not with the version it should.")
    task: str | None = None
    card: dict[str, Any] | None = None


class ModelList(BaseModel):
    """Every model of the repository, by name."""

    models: list[ModelBody]
