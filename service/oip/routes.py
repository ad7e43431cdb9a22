"""The routes of the Open Inference Protocol v2, under /v2: what `tritonclient` speaks."""

import asyncio
import contextlib
from typing import Any

from fastapi import APIRouter, Request, Response

import attnserve
from attnserve.service.attention import captures_for, held_bytes
from attnserve.service.body import in_turn, read_body, while_connected
from attnserve.service.budget import Budget
from attnserve.service.deadline import Deadline, within_deadline
from attnserve.service.engine import Job
from attnserve.service.oip import answer, mapping, schemas, tensors
from attnserve.service.openapi import describe_body
from attnserve.service.problems import Unavailable
from attnserve.service.routing import LARGE_BODY_BYTES, answer_json, find_model, get, get_catalogue
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings

EXTENSIONS = ("binary_tensor_data", "parameters", "model_repository(index)")
PLATFORM = "onnxruntime_onnx"

router = APIRouter(tags=["open inference protocol"])


@get(router, "/v2", responses=schemas.SERVER_ANSWERS)
async def show_server() -> Response:
    """The server, and the extensions of the protocol it has."""
    return answer_json({"name": "attnserve", "version": attnserve.__version__, "extensions": list(EXTENSIONS)})


@get(router, "/v2/health/live", responses=schemas.LIVE_ANSWERS)
async def live() -> Response:
    """Alive: the process answers."""
    return answer_json({"live": True})


@get(router, "/v2/health/ready", responses=schemas.SERVER_READY_ANSWERS)
async def ready(request: Request) -> Response:
    """Ready: loading is over and at least one model answers."""
    if not get_catalogue(request).is_ready:
        raise Unavailable("models are being loaded, or none answers")
    return answer_json({"ready": True})


@get(router, "/v2/models/{model}", responses=schemas.METADATA_ANSWERS)
async def show_metadata(model: str, request: Request) -> Response:
    """Tensors of a model: inputs, outputs, and under `parameters` the outputs that can be asked for."""
    return _metadata(request, model, None)


@get(router, "/v2/models/{model}/versions/{version}", responses=schemas.METADATA_ANSWERS)
async def show_version_metadata(model: str, version: str, request: Request) -> Response:
    """As `show_metadata`, for one version."""
    return _metadata(request, model, version)


@get(router, "/v2/models/{model}/ready", responses=schemas.MODEL_READY_ANSWERS)
async def model_ready(model: str, request: Request) -> Response:
    """Ready: this model answers."""
    return answer_json({"name": find_model(request, model, None).name, "ready": True})


@get(router, "/v2/models/{model}/versions/{version}/ready", responses=schemas.MODEL_READY_ANSWERS)
async def version_ready(model: str, version: str, request: Request) -> Response:
    """As `model_ready`, for one version."""
    return answer_json({"name": find_model(request, model, version).name, "ready": True})


@router.post(
    "/v2/models/{model}/infer", responses=schemas.INFER_ANSWERS, openapi_extra=describe_body(schemas.InferBody)
)
async def infer(model: str, request: Request) -> Response:
    """Tensors in, tensors out: JSON, or with the binary tensor extension."""
    return await _infer(request, model, None)


@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    responses=schemas.INFER_ANSWERS,
    openapi_extra=describe_body(schemas.InferBody),
)
async def infer_version(model: str, version: str, request: Request) -> Response:
    """As `infer`, from that version or not at all."""
    return await _infer(request, model, version)


def _metadata(request: Request, name: str, version: str | None) -> Response:
    found = find_model(request, name, version)
    document: dict[str, Any] = {
        "name": found.name,
        "versions": [str(found.version)],
        "platform": PLATFORM,
        "inputs": [spec.describe() for spec in mapping.input_specs(found.reader)],
        "outputs": [mapping.output_spec(found.manifest).describe()],
        "parameters": {"optional_outputs": [spec.describe() for spec in mapping.optional_outputs(found.manifest)]},
    }
    return answer_json(document)


async def _infer(request: Request, name: str, version: str | None) -> Response:
    settings: Settings = request.app.state.settings
    async with within_deadline(request, settings.timeout_ms) as deadline:
        return await _infer_in_time(request, name, version, deadline)


async def _infer_in_time(request: Request, name: str, version: str | None, deadline: Deadline) -> Response:
    settings: Settings = request.app.state.settings
    budget: Budget = request.app.state.budget
    found = find_model(request, name, version)
    with contextlib.ExitStack() as held:

        def hold(num_bytes: int) -> None:
            held.enter_context(budget.hold(num_bytes))

        # Clients send binary bodies as bytes, or JSON without saying that it is.
        body = await read_body(request, settings.max_body_bytes, hold, any_media_type=True)
        header = request.headers.get(tensors.HEADER)
        if len(body) > LARGE_BODY_BYTES:
            parsed, asked = await in_turn(request, request.app.state.parsing, _parse, body, header, found.reader)
        else:
            parsed, asked = _parse(body, header, found.reader)
    deadline.shorten(asked.predict.timeout_ms)
    answer.check_size(asked, found, max_response_bytes=settings.max_response_bytes)
    captures = asked.captures
    if asked.predict.attention is not None:
        captures = captures | captures_for(found.manifest, asked.predict.attention)
    jobs = [
        Job(sequence=read.values, positions=positions, captures=captures)
        for read, positions in zip(asked.predict.inputs, asked.predict.positions, strict=True)
    ]
    with budget.hold(held_bytes(asked.predict, found.manifest)):
        answers = await while_connected(request, found.batcher.submit(jobs))
        if asked.predict.attention is not None:
            return await in_turn(
                request, request.app.state.weighing, answer.render_answer, found, parsed, asked, answers
            )
        return await asyncio.to_thread(answer.render_answer, found, parsed, asked, answers)


def _parse(body: bytes, header: str | None, reader: Reader) -> tuple[tensors.Request, mapping.Asked]:
    parsed = tensors.parse_request(body, header, mapping.input_specs(reader))
    return parsed, mapping.parse_asked(parsed, reader)
