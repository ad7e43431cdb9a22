"""Predictions: the likeliest entries as an answer shows them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.resident import is_finite
from attnserve.service.job import Answer
from attnserve.service.problems import Invalid
from attnserve.top import Top

Label = Callable[[int], str | None]


def check_finite(answers: Sequence[Answer], field: str = "sequences") -> None:
    """Refuse to answer what overflows inside the model, as large features do, soonest in half precision.

    Args:
        answers: one per sequence.
        field: what the client called the sequences.

    Raises:
        Invalid: names the sequence.
    """
    for index, answer in enumerate(answers):
        if not (answer.is_finite() and all(map(is_finite, answer.captures.values()))):
            message = "expected a sequence to which the model has a finite answer, got one that overflows"
            raise Invalid.about(f"{field}[{index}]", message)


def render_prediction(top: Top, positions: NDArray[np.int64] | None, label: Label) -> dict[str, Any]:
    """`{"positions", "top"}` of one sequence; logits and probabilities stay float32, printed in shortest exact form.

    Args:
        top: of each position.
        positions: [P] steps they belong to; None if they are the answer to the sequence as a whole.
        label: the name of an id, if it has one.
    """
    probabilities = top.probabilities
    entries = [
        [
            describe_entry(index, top.logits[row, place], probabilities[row, place], label)
            for place, index in enumerate(ids)
        ]
        for row, ids in enumerate(top.ids.tolist())
    ]
    return {"positions": None if positions is None else positions.tolist(), "top": entries}


def describe_entry(index: int, logit: np.float32, probability: np.float32, label: Label) -> dict[str, Any]:
    """One candidate."""
    return {"id": index, "label": label(index), "probability": probability, "logit": logit}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[P, W], computed in float64."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
