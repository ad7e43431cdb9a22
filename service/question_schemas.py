"""Questions about attention and what answers them, as bodies for OpenAPI. They are checked in `question.py`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from attnserve.service.diagnostics import DEFAULT, DIAGNOSTICS
from attnserve.service.selection import SLICE

Slice = Annotated[str, Field(pattern=SLICE.pattern)]
Indices = Literal["all"] | Slice | list[int]
Steps = Literal["all", "last"] | Slice | list[int]
Sequences = list[list[int] | list[str] | list[list[float]] | str]
SELECTED = 'Every "all", "last", a slice like "2:-1", a list, {"token": ...} or {"span": [first, end]}.'


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


class TokenSelector(BaseModel):
    """Every step at which a token stands."""

    token: str | int = Field(description="Its text or label, blanks around it left out, or its id.")


class SpanSelector(BaseModel):
    """Every step whose token stands for one of some characters."""

    span: tuple[int, int] = Field(description="First character of the text, and the one after the last.")


class ReduceFields(BaseModel):
    """What is put together: words first, then queries, heads and layers."""

    layers: Literal["none", "mean", "max", "min"] = "none"
    heads: Literal["none", "mean", "max", "min"] = "none"
    queries: Literal["none", "mean", "sum"] = "none"
    tokens: Literal["subword", "word"] = "subword"


class CompareFields(BaseModel):
    """The other side of a comparison; what is not given is the same on both."""

    model: str | None = Field(None, description="Another model, with as many layers, heads and outputs.")
    version: int | None = Field(
        None, ge=1, le=999_999_999, description="Of that model, or of the one asked; need not be the served one."
    )
    sequences: Sequences | None = Field(None, description="Other sequences, as many and of the same lengths.")


Selector = Steps | TokenSelector | SpanSelector


class AttentionFields(BaseModel):
    """What is asked about attention. Indices count from 0; negative ones from the end."""

    layers: Indices = Field("all", description="Layers, in the order wanted.")
    heads: Indices = Field("all", description="Heads, in the order wanted.")
    pairs: list[tuple[int, int]] | None = Field(None, description="[layer, head] each, instead of layers and heads.")
    queries: Selector = Field("all", description=f"Rows: query steps of every sequence. {SELECTED}")
    keys: Selector = Field("all", description=f"Columns: key steps of every sequence. {SELECTED}")
    special_tokens: Literal["keep", "drop", "drop_renormalise"] = Field(
        "keep",
        description="Whether special tokens are rows and columns, and whether rows are scaled to 1 without them.",
    )
    quantity: Literal[
        "diagnostics", "weights", "signed", "scores", "weighted", "received", "rollout", "qk", "metric"
    ] = Field("diagnostics", description="A table of measures per head, or one of the maps of docs/attention-api.md.")
    diagnostics: Literal["cheap", "all"] | list[str] = Field(
        list(DEFAULT), description=f"Measures to compute, of {', '.join(DIAGNOSTICS)}."
    )
    exclude_bos: bool = Field(False, description="Leave the first key out of duplicate_token and induction.")
    exclude_current_token: bool = Field(False, description="Leave a row's own key out of them.")
    reduce: ReduceFields | None = None
    top_keys: int | None = Field(None, ge=1, description="Only so many entries of a row, the largest, and their share.")
    min_weight: float | None = Field(None, ge=0, le=1, description="Only entries of a row of at least this.")
    dtype: Literal["float32", "float16", "uint8_sqrt"] = Field(
        "float32", description="Type of maps in tensors; of uint8_sqrt a number is scale x (code / 255)^2."
    )
    compare: CompareFields | None = Field(None, description="Ask another model, or about other sequences, as well.")
    ablate: list[tuple[int, int]] | None = Field(
        None, description="[layer, head] each: predict without them as well, and say what changes."
    )
    dry_run: bool = Field(False, description="Only say how large the answer would be.")


class Diagnostics(BaseModel):
    """Measures of one head, over the query rows asked for; definitions in docs/attention-api.md."""

    sequence: int
    layer: int
    head: int
    variant: str
    entropy_bits: float | None = None
    entropy_normalised: float | None = None
    distance: float | None = None
    sink: float | None = None
    self: float | None = None
    previous_token: float | None = None
    duplicate_token: float | None = None
    induction: float | None = None
    mass: float | None = None
    special: float | None = None
    negative: float | None = None
    received: list[float | None] | None = None
    head_distance: list[float] | None = None
    importance_bits: float | None = None
    importance_logit: float | None = None


class LayerDiagnostics(BaseModel):
    """Measures of one layer."""

    sequence: int
    layer: int
    collapse: float | None = None


class Map(BaseModel):
    """Numbers of one head, under the name of the quantity: one row per query, one number per key."""

    sequence: int
    layer: int | None = Field(None, description="Null where layers are put together.")
    head: int | None = Field(None, description="Null where heads are put together.")
    queries: list[int] | None = Field(None, description="Steps of the rows.")
    weights: list[Any] | None = Field(None, description="Keys that may not be seen are exactly 0.")
    signed: list[Any] | None = Field(None, description="Weights with the sign of the score.")
    scores: list[Any] | None = Field(None, description="Before weighting; null of keys that may not be seen.")
    weighted: list[Any] | None = Field(None, description="Weights times the norm of what each value adds.")
    received: list[float | None] | None = None
    rollout: list[Any] | None = None
    keys: list[Any] | None = Field(None, description="With top_keys or min_weight: what the entries are of.")
    kept_mass: float | list[float | None] | None = Field(None, description="Share of each row that its entries are.")
    query: list[Any] | None = None
    key: list[Any] | None = None
    normaliser: list[Any] | None = None
    value_norm: list[Any] | None = None
    metric: list[Any] | None = None


class Word(BaseModel):
    """A run of characters that are no white space, or a token without any."""

    text: str | None
    span: tuple[int, int] | None
    steps: tuple[int, int] = Field(description="First step, and the one after the last.")


class Numbers(BaseModel):
    """What was asked for, an entry per sequence, layer and head."""

    diagnostics: list[Diagnostics] | None = None
    layer_diagnostics: list[LayerDiagnostics] | None = None
    maps: list[Map] | None = None


class Attended(Numbers):
    """What an answer is about, and its numbers."""

    quantity: str | None = None
    causal: bool | None = None
    layers: list[int] | None = None
    heads: list[int] | None = None
    pairs: list[tuple[int, int]] | None = None
    variants: list[str] | None = Field(None, description="Variant of each layer, or pair.")
    queries: list[list[int]] | None = Field(None, description="Absolute query steps per sequence.")
    keys: list[list[int]] | None = Field(None, description="Absolute key steps per sequence; without it, all.")
    words: list[list[Word]] | None = None
    query_words: list[list[int]] | None = Field(None, description="Words that the rows are.")
    key_words: list[list[int]] | None = Field(None, description="Words that the columns are.")
    axes: dict[str, list[str]] | None = Field(None, description="Of each tensor of a sequence.")


class Change(BaseModel):
    """What an ablation changed, per predicted position."""

    bits: list[float] = Field(description="Kullback-Leibler divergence of the prediction without from the one with.")
    probability: list[float] = Field(description="Gain of the class that was the likeliest with them.")
    logit: list[float] = Field(description="The same of its logit.")


class Ablation(BaseModel):
    """The prediction without some heads."""

    heads: list[tuple[int, int]]
    predictions: list[Prediction]
    changes: list[Change]


class Divergence(BaseModel):
    """Jensen-Shannon divergence of the rows of one head, mean over queries; of rollouts, of all heads."""

    sequence: int
    layer: int | None = None
    head: int | None = None
    bits: float | None


class Comparison(Numbers):
    """The other side, and how far it is from the first."""

    model: str
    version: int
    predictions: list[Prediction]
    prediction_divergence_bits: list[list[float]]
    variants: list[str]
    warnings: list[str]
    tokens: list[list[Token]] | None = None
    divergences: list[Divergence] | None = None
