"""Passes: the forward passes that a request takes besides the one that answers it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Manifest
from attnserve.service.heads import Heads
from attnserve.service.job import Answer, Job
from attnserve.service.preprocess import PredictRequest

Head = tuple[int, int]


# Without a repr: answers are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Passes:
    """What a model answered to a request."""

    plain: list[Answer]
    """Per sequence."""
    ablated: list[Answer]
    """Without all heads that are to be switched off; empty if there are none."""
    without: dict[Head, list[Answer]]
    """Without one head each, for its importance."""


def list_ablations(request: PredictRequest) -> list[tuple[Head, ...]]:
    """Heads that each of the further passes goes without."""
    question = request.attention
    if question is None:
        return []
    ablations: list[tuple[Head, ...]] = [tuple(question.ablate)] if question.ablate else []
    if "importance" in question.diagnostics:
        by_layer = Heads(question).by_layer
        ablations += [((layer, head),) for layer, heads in by_layer.items() for head in heads]
    return ablations


def make_jobs(
    request: PredictRequest, manifest: Manifest, captures: frozenset[str], *, stays: bool = False
) -> list[Job]:
    """One job per sequence, whose captures may stay on the device, then one per sequence of every ablation."""
    jobs = [
        Job(sequence=read.values, positions=positions, captures=captures, stays=stays, top_k=request.num_entries)
        for read, positions in zip(request.inputs, request.positions, strict=True)
    ]
    for heads in list_ablations(request):
        head_scale = switch_off(heads, manifest)
        jobs += [
            Job(sequence=read.values, positions=positions, head_scale=head_scale)
            for read, positions in zip(request.inputs, request.positions, strict=True)
        ]
    return jobs


def sort_answers(request: PredictRequest, answers: list[Answer]) -> Passes:
    """The answers to `make_jobs`, by what they are of."""
    size = len(request.inputs)
    parts = [answers[start : start + size] for start in range(0, len(answers), size)]
    ablations = list_ablations(request)
    has_ablated = request.attention is not None and bool(request.attention.ablate)
    singles = zip(ablations[has_ablated:], parts[1 + has_ablated :], strict=True)
    return Passes(
        plain=parts[0],
        ablated=parts[1] if has_ablated else [],
        without={heads[0]: part for heads, part in singles},
    )


def switch_off(heads: Sequence[Head], manifest: Manifest) -> NDArray[np.float32]:
    """`head_scale` [layers, heads]: 0 for those heads, 1 for the others."""
    scale = np.ones((len(manifest.layers), manifest.num_heads), np.float32)
    for layer, head in heads:
        scale[layer, head] = 0
    return scale
