"""Request and response bodies, for OpenAPI and its examples. Requests are checked in `preprocess`, not here."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnserve.service.continuation import MAX_SEED
from attnserve.service.preprocess import DEFAULT_TOP_K
from attnserve.service.selection import DEFAULT_DIAGNOSTICS, DIAGNOSTICS

Indices = Literal["all"] | list[int]
Steps = Literal["all", "last"] | list[int]
Sequences = list[list[int] | list[str] | list[list[float]] | str]
TIMEOUT = "Answer within this time, or 504; the header Timeout-Ms says the same, and the shorter one counts."
READS = (
    "One item per sequence: token ids; labels, where the model has a label per id; a text, if the model reads text; "
    "or vectors of numbers, if it reads features."
)


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
    dtype: Literal["float32", "float16", "uint8_sqrt"] = Field(
        "float32", description="Type of weights in tensors; of uint8_sqrt a weight is scale x (code / 255)^2."
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
    attention: Selection | None = Field(None, description="Attention to return with the predictions.")
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

    sequences: Sequences = Field(description=READS)
    top_k: int | None = Field(None, ge=1, description="Entries per predicted position, as in predict.")
    positions: Steps | None = Field(None, description="Steps of every sequence to predict from, as in predict.")
    timeout_ms: float | None = Field(None, gt=0, description=TIMEOUT)


class Entry(BaseModel):
    """One candidate: a token, or a class."""

    id: int
    label: str | None = Field(description="Its name, if it has one; of a model that reads text, the token's text.")
    probability: float
    logit: float


class Prediction(BaseModel):
    """The predictions of one sequence."""

    positions: list[int] | None = Field(description="Null if the one prediction is of the sequence as a whole.")
    top: list[list[Entry]] = Field(description="Per position, by falling logit.")


class Token(BaseModel):
    """One step of a sequence, as the model read it."""

    id: int | None = Field(None, description="Null if the model reads features.")
    text: str | None = Field(
        None, description="What the span cuts out of the text sent; else the name of the id; or [cls]."
    )
    span: tuple[int, int] | None = Field(
        None, description="First character and the one after the last, counted in code points of the text sent."
    )


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
    """Answer of `predict`; the fields after `tokens` only when attention was asked for."""

    model: str
    version: int
    predictions: list[Prediction]
    warnings: list[str]
    tokens: list[list[Token]] | None = Field(None, description="If a sequence was a text, or attention was asked for.")
    quantity: str | None = None
    causal: bool | None = None
    layers: list[int] | None = None
    variants: list[str] | None = Field(None, description="Variant of each layer in `layers`.")
    heads: list[int] | None = None
    queries: list[list[int]] | None = Field(None, description="Absolute query steps per sequence.")
    diagnostics: list[Diagnostics] | None = None
    maps: list[Map] | None = None


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
