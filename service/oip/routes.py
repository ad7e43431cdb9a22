"""The routes of the Open Inference Protocol v2, under /v2: what `tritonclient` speaks."""

import functools

from fastapi import APIRouter, Request, Response

import attnserve
from attnserve.service.attention import held_bytes
from attnserve.service.body import in_turn
from attnserve.service.budget import Budget
from attnserve.service.captures.levels import QK
from attnserve.service.deadline import Deadline, within_deadline
from attnserve.service.guard import Need, needs, require, require_level
from attnserve.service.idle import Idle
from attnserve.service.model import ServedModel
from attnserve.service.oip import schemas
from attnserve.service.oip.answer import count_numbers, render_answer
from attnserve.service.oip.mapping import Asked, input_specs, optional_outputs, output_spec, parse_asked
from attnserve.service.oip.models import describe_config, describe_metadata, describe_statistics
from attnserve.service.oip.request import HEADER, parse_request
from attnserve.service.openapi import describe_body
from attnserve.service.routing import (
    PlainRoute,
    answer_json,
    ask,
    check_ready,
    find_model,
    get,
    get_catalogue,
    read_request,
    render,
)
from attnserve.service.sampling import Sampler
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings

EXTENSIONS = ("binary_tensor_data", "parameters", "model_configuration", "model_repository", "statistics")
# Answers beyond it are rendered off the event loop: writing as many numbers as JSON takes a millisecond.
LARGE_ANSWER_NUMBERS = 16 * 1024

router = APIRouter(route_class=PlainRoute, tags=["open inference protocol"])


@get(router, "/v2", responses=schemas.SERVER_ANSWERS)
@needs(Need.KEY)
async def show_server(_: Request) -> Response:
    """The server, and the extensions of the protocol it has."""
    return answer_json({"name": "attnserve", "version": attnserve.__version__, "extensions": list(EXTENSIONS)})


@get(router, "/v2/health/live", responses=schemas.LIVE_ANSWERS)
@needs(Need.NOTHING)
async def live(_: Request) -> Response:
    """Alive: the process answers."""
    return answer_json({"live": True})


@get(router, "/v2/health/ready", responses=schemas.SERVER_READY_ANSWERS)
@needs(Need.NOTHING)
async def ready(request: Request) -> Response:
    """Ready: loading is over and at least one model answers."""
    check_ready(get_catalogue(request))
    return answer_json({"ready": True})


# Before the models: the protocol has the word in the place of a name.
@get(router, "/v2/models/stats", responses=schemas.ALL_STATISTICS_ANSWERS)
@needs(Need.KEY)
async def show_all_statistics(request: Request) -> Response:
    """What every model has done since its version was loaded."""
    return answer_json(describe_statistics(get_catalogue(request).models.values()))


@get(router, "/v2/models/{model}", responses=schemas.METADATA_ANSWERS)
@needs(Need.KEY)
async def show_metadata(request: Request, model: str) -> Response:
    """Tensors of a model: inputs, outputs, and under `parameters` the outputs that can be asked for."""
    return answer_json(describe_metadata(find_model(request, model, None)))


@get(router, "/v2/models/{model}/versions/{version}", responses=schemas.METADATA_ANSWERS)
@needs(Need.KEY)
async def show_version_metadata(request: Request, model: str, version: str) -> Response:
    """As `show_metadata`, for one version."""
    return answer_json(describe_metadata(find_model(request, model, version)))


@get(router, "/v2/models/{model}/config", responses=schemas.CONFIG_ANSWERS)
@needs(Need.KEY)
async def show_config(request: Request, model: str) -> Response:
    """The same in the words of Triton's model configuration."""
    return answer_json(describe_config(find_model(request, model, None)))


@get(router, "/v2/models/{model}/versions/{version}/config", responses=schemas.CONFIG_ANSWERS)
@needs(Need.KEY)
async def show_version_config(request: Request, model: str, version: str) -> Response:
    """As `show_config`, for one version."""
    return answer_json(describe_config(find_model(request, model, version)))


@get(router, "/v2/models/{model}/ready", responses=schemas.MODEL_READY_ANSWERS)
@needs(Need.KEY)
async def model_ready(request: Request, model: str) -> Response:
    """Ready: this model answers."""
    return answer_json({"name": find_model(request, model, None).name, "ready": True})


@get(router, "/v2/models/{model}/versions/{version}/ready", responses=schemas.MODEL_READY_ANSWERS)
@needs(Need.KEY)
async def version_ready(request: Request, model: str, version: str) -> Response:
    """As `model_ready`, for one version."""
    return answer_json({"name": find_model(request, model, version).name, "ready": True})


@get(router, "/v2/models/{model}/stats", responses=schemas.STATISTICS_ANSWERS)
@needs(Need.KEY)
async def show_statistics(request: Request, model: str) -> Response:
    """What the served version of a model has done since it was loaded."""
    return answer_json(describe_statistics([find_model(request, model, None)]))


@get(router, "/v2/models/{model}/versions/{version}/stats", responses=schemas.STATISTICS_ANSWERS)
@needs(Need.KEY)
async def show_version_statistics(request: Request, model: str, version: str) -> Response:
    """As `show_statistics`, for one version."""
    return answer_json(describe_statistics([find_model(request, model, version)]))


@router.post(
    "/v2/models/{model}/infer", responses=schemas.INFER_ANSWERS, openapi_extra=describe_body(schemas.InferBody)
)
@needs(Need.PREDICT)
async def infer(request: Request, model: str) -> Response:
    """Tensors in, tensors out: JSON, or with the binary tensor extension."""
    return await _infer(request, model, None)


@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    responses=schemas.INFER_ANSWERS,
    openapi_extra=describe_body(schemas.InferBody),
)
@needs(Need.PREDICT)
async def infer_version(request: Request, model: str, version: str) -> Response:
    """As `infer`, from that version or not at all."""
    return await _infer(request, model, version)


async def _infer(request: Request, name: str, version: str | None) -> Response:
    settings: Settings = request.app.state.settings
    async with within_deadline(request, settings.timeout_ms) as deadline:
        return await _infer_in_time(request, name, version, deadline)


async def _infer_in_time(request: Request, name: str, version: str | None, deadline: Deadline) -> Response:
    model = request.scope["asked"] = find_model(request, name, version)
    parse = functools.partial(_parse, header=request.headers.get(HEADER))
    # Clients send binary bodies as bytes, or JSON without saying that it is.
    asked = await read_request(request, model.reader, parse, as_json=False)
    if asked.captures:
        require(request, Need.ATTENTION, "outputs")
    if asked.tells_weights(model.manifest):
        require_level(request.app.state.settings.captures, model.name, QK, "outputs")
    deadline.shorten(asked.predict.timeout_ms)
    idle: Idle = request.app.state.idle
    with idle.busy():
        response = await _answer(request, model, asked, deadline)
    if asked.captures:
        return response
    sampler: Sampler = request.app.state.sampler
    return sampler.offer(model, asked.predict, response)


async def _answer(request: Request, model: ServedModel, asked: Asked, deadline: Deadline) -> Response:
    settings: Settings = request.app.state.settings
    budget: Budget = request.app.state.budget
    num_numbers = count_numbers(asked, max_response_bytes=settings.max_response_bytes)
    # Padded, and then written.
    answer_bytes = 2 * 4 * num_numbers
    num_bytes = held_bytes(asked.predict, model.manifest) + asked.capture_bytes + answer_bytes
    with budget.hold(num_bytes, asked.predict.field):
        answers = await ask(request, model, asked.predict, asked.captures, deadline)
        make = functools.partial(render_answer, model, asked, answers)
        if asked.predict.attention is not None or num_numbers > LARGE_ANSWER_NUMBERS:
            return await in_turn(request, request.app.state.weighing, render, request, model, make)
        return render(request, model, make)


def _parse(body: bytes, reader: Reader, header: str | None) -> Asked:
    outputs = [output_spec(reader.manifest), *optional_outputs(reader.manifest)]
    return parse_asked(parse_request(body, header, input_specs(reader), outputs), reader)
