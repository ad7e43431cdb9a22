"""Ablation: what a prediction loses when heads are switched off (`head_scale` 0 in the same graph)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.divergence import kullback_leibler
from attnserve.service.heads import Heads
from attnserve.service.job import Answer, logits_of
from attnserve.service.passes import Head
from attnserve.service.prediction import check_finite, render_prediction, softmax
from attnserve.service.preprocess import PredictRequest
from attnserve.service.question import Question
from attnserve.service.sequences import Reader

Array = NDArray[Any]


def measure_change(before: NDArray[np.float32], after: NDArray[np.float32]) -> dict[str, Array]:
    """How far logits [P, W] have moved, [P] each, seen from the likeliest class before."""
    likeliest = before.argmax(1)[:, None]

    def gain(first: Array, second: Array) -> Array:
        return np.take_along_axis(second - first, likeliest, 1)[:, 0]

    return {
        "bits": kullback_leibler(before, after).astype(np.float32),
        "probability": gain(softmax(before), softmax(after)),
        "logit": gain(before, after),
    }


def measure_importance(
    question: Question, index: int, answer: Answer, without: Mapping[Head, Sequence[Answer]]
) -> dict[str, Array]:
    """The measures of the diagnostic "importance", means over positions."""
    heads = Heads(question)
    changes = [
        measure_change(logits_of(answer), logits_of(without[layer, head][index]))
        for layer, some in heads.by_layer.items()
        for head in some
    ]
    bits, logit = (np.array([change[name].mean() for change in changes], np.float32) for name in ("bits", "logit"))
    return {"importance_bits": heads.expand(bits), "importance_logit": heads.expand(-logit)}


def describe_ablation(
    request: PredictRequest, reader: Reader, answers: Sequence[Answer], ablated: Sequence[Answer]
) -> dict[str, Any]:
    """Predictions without the heads, and how far they are from those with them."""
    check_finite(ablated)
    assert request.attention is not None
    is_whole = reader.manifest.task == "classify_sequence"
    places = [None if is_whole else positions for positions in request.positions]
    return {
        "heads": [list(head) for head in request.attention.ablate],
        "predictions": [
            render_prediction(answer.find_top(request.top_k), positions, reader.name_class)
            for answer, positions in zip(ablated, places, strict=True)
        ],
        "changes": [
            measure_change(logits_of(before), logits_of(after)) for before, after in zip(answers, ablated, strict=True)
        ],
    }
