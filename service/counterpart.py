"""The counterpart: the other side of a comparison, asked the same, and what it says beside the first."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from attnserve.service.attention import compute_arrays, make_attended
from attnserve.service.comparison import check_lengths
from attnserve.service.divergence import diverge_heads, diverge_predictions, diverge_rollouts
from attnserve.service.job import Answer, logits_of
from attnserve.service.layout import COMPARED, DIVERGENCE
from attnserve.service.model import ServedModel
from attnserve.service.passes import Passes
from attnserve.service.prediction import check_finite, render_prediction
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Invalid
from attnserve.service.sequences import Input, Reader, parse_sequences

Arrays = list[dict[str, NDArray[Any]]]


# Without a repr: inputs and answers are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Counterpart:
    """The other side, and its answers."""

    model: ServedModel
    request: PredictRequest
    passes: Passes


def make_counterpart(request: PredictRequest, model: ServedModel, other: ServedModel) -> PredictRequest:
    """The same question to the other side.

    Raises:
        Invalid: the other model cannot be asked that; names what it lacks.
    """
    question = request.attention
    assert question is not None
    assert question.compare is not None
    inputs = request.inputs if question.compare.inputs is None else question.compare.inputs
    if other is not model:
        field = question.compare.model_field
        _check_shapes(model, other, field)
        inputs = _read_again(inputs, other.reader, field)
        check_lengths(request.inputs, inputs, field)
    special = [other.reader.find_special(read) for read in inputs] if question.special else []
    asked = dataclasses.replace(question, compare=None, ablate=[], special=special)
    return dataclasses.replace(request, inputs=inputs, attention=asked, all_logits=True)


def compare_arrays(
    model: ServedModel, request: PredictRequest, answers: Sequence[Answer], counterpart: Counterpart, own: Arrays
) -> Arrays:
    """The arrays of both sides, and how far they are from each other.

    Args:
        model: that was asked.
        request: to it.
        answers: of it.
        counterpart: the other side.
        own: arrays of the model that was asked.
    """
    other = counterpart.model
    passes = counterpart.passes
    theirs = compute_arrays(
        other.engine.runtime.weighing, other.manifest.layers, counterpart.request, passes.plain, passes.without
    )
    assert request.attention is not None
    compared = []
    for index, (mine, yours) in enumerate(zip(own, theirs, strict=True)):
        pair = [answers[index], passes.plain[index]]
        # Block by block, so both in the blocks of devices, or both in those of the host.
        if any(answer.weighing is None for answer in pair):
            pair = [answer.to_host() for answer in pair]
        both = (
            make_attended(side.engine.runtime.weighing, side.manifest.layers, asked, index, answer)
            for side, asked, answer in zip((model, other), (request, counterpart.request), pair, strict=True)
        )
        divergence = diverge_rollouts(*both) if request.attention.quantity == "rollout" else diverge_heads(*both)
        compared.append(
            {**mine, **{f"{COMPARED}{name}": array for name, array in yours.items()}, DIVERGENCE: divergence}
        )
    return compared


def describe_counterpart(
    request: PredictRequest, answers: Sequence[Answer], counterpart: Counterpart
) -> dict[str, Any]:
    """What the other side predicts, and how far that is from the first; without its maps and measures."""
    other, asked, found = counterpart.model, counterpart.request, counterpart.passes.plain
    check_finite(found)
    manifest, question = other.manifest, asked.attention
    assert question is not None
    is_whole = manifest.task == "classify_sequence"
    places = [None if is_whole else positions for positions in asked.positions]
    described: dict[str, Any] = {
        "model": other.name,
        "version": other.version,
        "predictions": [
            render_prediction(answer.find_top(asked.top_k), positions, other.reader.name_class)
            for answer, positions in zip(found, places, strict=True)
        ],
        "prediction_divergence_bits": [
            diverge_predictions(logits_of(one), logits_of(two)) for one, two in zip(answers, found, strict=True)
        ],
        "variants": [manifest.layers[layer].variant for layer in question.layers],
        "warnings": list(manifest.warnings),
    }
    if asked.inputs is not request.inputs:
        described["tokens"] = [other.reader.list_tokens(read) for read in asked.inputs]
    return described


def _check_shapes(model: ServedModel, other: ServedModel, field: str) -> None:
    first, second = model.manifest, other.manifest
    sizes = (
        ("layers", len(first.layers), len(second.layers)),
        ("heads", first.num_heads, second.num_heads),
        ("outputs", first.num_outputs, second.num_outputs),
    )
    for what, expected, got in sizes:
        if expected != got:
            raise Invalid.about(field, f"expected a model with {expected} {what}, as {model.name} has, got {got}")
    if first.task != second.task:
        raise Invalid.about(field, f"expected a model whose task is {first.task}, got {second.task}")


def _read_again(inputs: Sequence[Input], reader: Reader, field: str) -> list[Input]:
    """The same sequences as the other model reads them."""
    manifest = reader.manifest
    read = []
    for index, one in enumerate(inputs):
        if one.text is not None and reader.text is not None:
            read += parse_sequences([one.text], reader, field)
            continue
        values = one.values
        fits = (
            values.ndim == 1 and manifest.vocabulary_size is not None and values.max() < manifest.vocabulary_size
            if manifest.num_features is None
            else values.shape[1:] == (manifest.num_features,)
        )
        if not fits or len(values) - manifest.leading_row > manifest.max_length:
            raise Invalid.about(field, f"expected a model that can read sequences[{index}], got {reader.kinds}")
        read.append(Input(values=values))
    return read
