"""Questions about a capture: those of the attention route, but for what takes another forward pass."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from attnserve.service.answer import Content, check_picture, describe_headers, has_picture, write_answer
from attnserve.service.attention import answer_bytes, captures_for, check_size, compute_arrays, count_weights
from attnserve.service.budget import Budget
from attnserve.service.captures.capture import Capture
from attnserve.service.captures.routing import FORMAT, LIGHT_VALUES, choose_type
from attnserve.service.diagnostics import ALL, CHEAP, DIAGNOSTICS
from attnserve.service.entries import describe_question
from attnserve.service.formats.negotiation import FORMATS, JSON, PNG
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Invalid
from attnserve.service.question import FIELDS, QUANTITIES, Question, parse_question
from attnserve.service.routing import weigh_and_write
from attnserve.service.selection import parse_choice, parse_names
from attnserve.service.settings import Settings

# What is about forward passes: a capture takes none.
OF_PASSES = ("compare", "ablate", "dry_run")
KNOWN = (*(name for name in FIELDS if name not in OF_PASSES), FORMAT)
NUMBERS = ("top_keys", "min_weight")
# Captures hold neither hidden states nor other passes, and the metric of one step alone.
CAPTURED = tuple(name for name, each in DIAGNOSTICS.items() if each.axis not in ("layer", "ablation"))
KEPT = tuple(name for name in QUANTITIES if name != "metric")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Asked:
    """A question about a capture, checked."""

    question: Question
    media_type: str


def parse_parameters(fields: dict[str, Any], capture: Capture, request: Request) -> Asked:
    """Check a question in the parameters of a URL.

    Raises:
        Invalid: as `parse_question`, and what was not captured; names the parameter.
        NotAcceptable: a format that its answer cannot be written in.
    """
    names = fields.get("diagnostics")
    if isinstance(names, str) and names not in (CHEAP, ALL):
        fields["diagnostics"] = names.split(",")
    _check_words(fields)
    if "pairs" not in fields and fields.get("layers", "all") == "all":
        fields["layers"] = list(capture.layers)
    question = parse_question(fields, capture.reader, capture.asked.inputs, "")
    capture.check_layers(question.layers, "pairs" if question.is_paired else "layers")
    is_named = isinstance(fields.get("diagnostics"), list)
    if question.quantity == "diagnostics":
        question = _leave_out(question, is_named=is_named)
    formats = [name for name in FORMATS if name != PNG or has_picture(question)]
    return Asked(question=question, media_type=choose_type(request, fields, formats))


async def answer_question(
    request: Request, capture: Capture, asked: Asked, encoding: str, headers: dict[str, str]
) -> Response:
    """The answer, computed and written in threads.

    Args:
        request: that asks.
        capture: that is asked about.
        asked: what.
        encoding: to compress it by.
        headers: more of them.
    """
    settings: Settings = request.app.state.settings
    budget: Budget = request.app.state.budget
    manifest, question, media_type = capture.reader.manifest, asked.question, asked.media_type
    answered = dataclasses.replace(capture.asked, attention=question)
    if media_type == PNG:
        check_picture(answered)
    limit = settings.max_response_bytes
    check_size(answered, manifest.layers, as_json=media_type == JSON, max_response_bytes=limit)

    def write(content: Content) -> Response:
        response = write_answer(content, question, media_type, encoding)
        response.headers.update(headers)
        return response

    if count_weights(question, answered.lengths) <= LIGHT_VALUES and media_type != PNG and question.quantity != "qk":
        return write(_compute(capture, answered))
    with budget.hold(answer_bytes(answered, manifest.layers)):
        return await weigh_and_write(request, None, functools.partial(_compute, capture, answered), write)


def _compute(capture: Capture, answered: PredictRequest) -> Content:
    manifest, question = capture.reader.manifest, answered.attention
    assert question is not None
    assert captures_for(manifest, question) <= capture.answer().captures.keys()
    document = {
        "capture": str(capture.id),
        "model": capture.model,
        "version": capture.version,
        "warnings": list(manifest.warnings),
        # Without tokens: the capture's description has them, and of a long sequence they outweigh a row.
        **describe_question(answered, manifest.layers, causal=manifest.causal),
    }
    arrays = compute_arrays(capture.weighing, manifest.layers, answered, [capture.answer()])
    return Content(document=document, arrays=arrays, headers=describe_headers(manifest, question))


def _check_words(fields: dict[str, Any]) -> None:
    """Refuse what captures do not answer before the rest: the attention route would say that it is allowed."""
    if fields.get("quantity") == "metric":
        message = "captures keep the metric of the last step, which their description has; expected another quantity"
        raise Invalid.about("quantity", message)
    parse_choice(fields, "quantity", KEPT, "")
    names = fields.get("diagnostics")
    if isinstance(names, list) and not DIAGNOSTICS.keys() >= set(map(str, names)):
        parse_names(names, "diagnostics", CAPTURED, also='"cheap", "all" or ')


def _leave_out(question: Question, *, is_named: bool) -> Question:
    """The question without the diagnostics that no capture can answer.

    Raises:
        Invalid: one of them was asked for by its name.
    """
    kept = tuple(name for name in question.diagnostics if name in CAPTURED)
    left_out = [name for name in question.diagnostics if name not in kept]
    if left_out and (is_named or not kept):
        message = f"captures hold neither hidden states nor other passes: expected another than {left_out[0]}"
        raise Invalid.about("diagnostics", message)
    return dataclasses.replace(question, diagnostics=kept)
