"""Answers: what a service says, as frozen dataclasses. Fields that are newer than this client are passed over."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A token or a class, and what the model thinks of it."""

    id: int
    label: str | None
    """Its name or text; None where there is none."""
    probability: float
    logit: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of one sequence."""

    positions: tuple[int, ...] | None
    """The steps predicted at; None of a classification of the whole sequence."""
    top: tuple[tuple[Candidate, ...], ...]
    """Per position, by falling logit."""

    @property
    def best(self) -> Candidate:
        """The likeliest at the last position."""
        return self.top[-1][0]


@dataclass(frozen=True, kw_only=True)
class Token:
    """A step of a sequence."""

    id: int | None
    """None of features."""
    text: str | None
    span: tuple[int, int] | None
    """First character and the one after the last, in the text sent; None if it stands for none of it."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The answer to a prediction."""

    model: str
    version: int
    predictions: tuple[Prediction, ...]
    """One per sequence, in the order sent."""
    tokens: tuple[tuple[Token, ...], ...]
    """Per sequence what was read; empty unless there were texts, or attention was asked for."""
    warnings: tuple[str, ...]
    """What a reader of these answers must know."""

    def __repr__(self) -> str:
        best = ", ".join(_name(prediction.best) for prediction in self.predictions[:3])
        more = f", and {len(self.predictions) - 3} more" if len(self.predictions) > 3 else ""
        return f"{type(self).__name__}({self.model}/{self.version}: {best}{more})"


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a model added to one sequence."""

    steps: tuple[int, ...]
    tokens: tuple[Candidate, ...]
    text: str | None
    """Of the new tokens together; None if the model has no text."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The answer to a continuation."""

    model: str
    version: int
    continuations: tuple[Continuation, ...]
    seed: int | None
    """That was drawn from; None at temperature 0."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the repository."""

    name: str
    version: int | None
    """The one that answers; None if none does."""
    versions: tuple[int, ...]
    ready: bool
    reason: str | None = None
    """Why it does not answer, or not with the version that it should."""
    task: str | None = None
    variants: tuple[str, ...] = ()
    num_layers: int | None = None
    num_heads: int | None = None


def read_model(document: Mapping[str, Any]) -> Model:
    """An entry of the list of models; one that does not answer has fewer fields."""
    known = {each.name: document[each.name] for each in fields(Model) if each.name in document}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return Model(**values)


def read_candidates(entries: list[Any]) -> tuple[Candidate, ...]:
    """Candidates of one position, or those that were chosen."""
    return tuple(
        Candidate(id=each["id"], label=each["label"], probability=each["probability"], logit=each["logit"])
        for each in entries
    )


def read_predictions(documents: list[Any]) -> tuple[Prediction, ...]:
    """`predictions` of an answer."""
    return tuple(
        Prediction(
            positions=None if each["positions"] is None else tuple(each["positions"]),
            top=tuple(map(read_candidates, each["top"])),
        )
        for each in documents
    )


def read_tokens(documents: list[Any]) -> tuple[tuple[Token, ...], ...]:
    """`tokens` of an answer."""
    return tuple(
        tuple(
            Token(id=each["id"], text=each["text"], span=None if each["span"] is None else tuple(each["span"]))
            for each in tokens
        )
        for tokens in documents
    )


def read_predicted(document: Mapping[str, Any]) -> Predicted:
    """An answer of predict."""
    return Predicted(
        model=document["model"],
        version=document["version"],
        predictions=read_predictions(document["predictions"]),
        tokens=read_tokens(document.get("tokens", [])),
        warnings=tuple(document["warnings"]),
    )


def read_generated(document: Mapping[str, Any]) -> Generated:
    """An answer of predict that went on."""
    return Generated(
        model=document["model"],
        version=document["version"],
        continuations=tuple(
            Continuation(
                steps=tuple(each["steps"]),
                tokens=read_candidates(each["tokens"]),
                text=each["text"],
            )
            for each in document["continuations"]
        ),
        seed=document["seed"],
        warnings=tuple(document["warnings"]),
    )


def _name(candidate: Candidate) -> str:
    name = candidate.id if candidate.label is None else repr(candidate.label)
    return f"{name} {candidate.probability:.3g}"
