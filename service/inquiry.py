"""Inquiry: the path of a question about attention, from the passes it takes to its answer."""

import functools

from fastapi import Request, Response

from attnserve.service.ablation import describe_ablation
from attnserve.service.answer import Content, check_picture, describe_answer, describe_headers, write_answer
from attnserve.service.attention import answer_bytes, captures_for, check_size, compute_arrays, held_bytes
from attnserve.service.body import in_turn
from attnserve.service.budget import Budget
from attnserve.service.captures.levels import QK
from attnserve.service.comparison import Comparison
from attnserve.service.counterpart import Counterpart, compare_arrays, describe_counterpart, make_counterpart
from attnserve.service.deadline import Deadline
from attnserve.service.formats.negotiation import JSON, PNG, choose_encoding
from attnserve.service.guard import Need, require, require_level
from attnserve.service.model import ServedModel
from attnserve.service.passes import Passes, sort_answers
from attnserve.service.plan import describe_plan
from attnserve.service.prediction import check_finite
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Conflict, Invalid, NotFound
from attnserve.service.routing import answer_json, ask, find_model, get_catalogue, weigh_and_write
from attnserve.service.settings import Settings


async def answer_question(
    request: Request, model: ServedModel, asked: PredictRequest, media_type: str, deadline: Deadline
) -> Response:
    """What heads attend to: the passes it takes, and then, in threads, what is made of them.

    Args:
        request: its body has been read.
        model: that is asked.
        asked: what the request asks for, with a question about attention.
        media_type: to answer with.
        deadline: of the request.
    """
    settings: Settings = request.app.state.settings
    budget: Budget = request.app.state.budget
    question, layers = asked.attention, model.manifest.layers
    assert question is not None
    require(request, Need.ATTENTION, "attention")
    if question.quantity == "qk":
        require_level(settings.captures, model.name, QK, "quantity")
    encoding = choose_encoding(request.headers.get("accept-encoding"))
    if question.dry_run:
        return answer_json(describe_plan(model, asked, max_response_bytes=settings.max_response_bytes))
    if media_type == PNG:
        check_picture(asked)
    check_size(asked, layers, as_json=media_type == JSON, max_response_bytes=settings.max_response_bytes)
    sides = [(model, asked)]
    if question.compare is not None:
        other = await _find_other(request, model, question.compare)
        sides.append((other, make_counterpart(asked, model, other)))
    num_bytes = sum(held_bytes(one, side.manifest) for side, one in sides)
    with budget.hold(num_bytes + answer_bytes(asked, layers)):
        passes = []
        for side, one in sides:
            assert one.attention is not None
            answers = await ask(request, side, one, captures_for(side.manifest, one.attention), deadline)
            passes.append(sort_answers(one, answers))
        counterpart = None
        if len(sides) > 1:
            counterpart = Counterpart(model=sides[1][0], request=sides[1][1], passes=passes[1])
        compute = functools.partial(_compute, model, asked, passes[0], counterpart)
        write = functools.partial(write_answer, question=question, media_type=media_type, encoding=encoding)
        return await weigh_and_write(request, model, compute, write)


async def _find_other(request: Request, model: ServedModel, compare: Comparison) -> ServedModel:
    """The model on the other side; a version that is not served is loaded first, in a thread.

    Raises:
        Invalid: there is none of that name, no such version, or it cannot be served.
        Unavailable: it does not answer.
        Overloaded: too many versions are waiting to be loaded.
    """
    if compare.model is None and compare.version in (None, model.version):
        # Not looked up: another version may be served by now.
        return model
    name = model.name if compare.model is None else compare.model
    catalogue = get_catalogue(request)
    served, versions = catalogue.models.get(name), catalogue.versions.get(name)
    if compare.version is None or versions is None or (served is not None and served.version == compare.version):
        try:
            return find_model(request, name, None)
        except NotFound as problem:
            raise Invalid.about(f"{compare.field}.model", problem.faults[0].message) from None
    invite = functools.partial(catalogue.guests.invite, name, compare.version, versions)
    try:
        return await in_turn(request, request.app.state.inviting, invite)
    except (Conflict, NotFound) as problem:
        raise Invalid.about(f"{compare.field}.version", problem.detail) from None


def _compute(model: ServedModel, asked: PredictRequest, passes: Passes, counterpart: Counterpart | None) -> Content:
    layers = model.manifest.layers
    assert asked.attention is not None
    check_finite(passes.plain)
    document = describe_answer(model.name, model.version, model.reader, asked, passes.plain)
    if passes.ablated:
        document["ablation"] = describe_ablation(asked, model.reader, passes.plain, passes.ablated)
    arrays = compute_arrays(model.engine.runtime.weighing, layers, asked, passes.plain, passes.without)
    if counterpart is not None:
        document["comparison"] = describe_counterpart(asked, passes.plain, counterpart)
        arrays = compare_arrays(model, asked, passes.plain, counterpart, arrays)
    return Content(document=document, arrays=arrays, headers=describe_headers(model.manifest, asked.attention))
