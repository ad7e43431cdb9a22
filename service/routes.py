"""The routes: thin. Each reads, asks, and renders; what can go wrong is raised as a `Problem` further in."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from attnserve.records import to_json
from attnserve.service import openapi, stream
from attnserve.service.answer import describe_answer, has_picture, write_predictions
from attnserve.service.attention import held_bytes
from attnserve.service.budget import Budget
from attnserve.service.catalogue import Catalogue
from attnserve.service.deadline import Deadline, within_deadline
from attnserve.service.exports.desk import Desk
from attnserve.service.formats.negotiation import FORMATS, JSON, PNG, choose_format
from attnserve.service.gpu_gauges import GpuGauges
from attnserve.service.guard import Need, needs
from attnserve.service.idle import Idle
from attnserve.service.inquiry import answer_question
from attnserve.service.job import Answer
from attnserve.service.metrics import CONTENT_TYPE, Metrics
from attnserve.service.model import ServedModel
from attnserve.service.prediction import check_finite
from attnserve.service.preprocess import PredictRequest, parse_attention, parse_predict
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
from attnserve.service.schemas import AttentionBody, ContinueAnswer, ModelBody, ModelList, Plan, Predict, PredictAnswer
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings
from attnserve.service.stream import answer_continuation

Parse = Callable[[bytes, Reader], PredictRequest]

# Answers beyond these are rendered off the event loop, as large bodies are parsed.
LARGE_ANSWER_ENTRIES = 256
LARGE_ANSWER_BYTES = 256 * 1024

# Of the manifest, not in the description of a model: said elsewhere in it, or of use to readers of files only.
HIDDEN = {"format_version", "task", "max_length", "inputs", "outputs", "files"}

router = APIRouter(route_class=PlainRoute)


@router.post(
    "/v1/models/{model}/predict",
    response_model=PredictAnswer | ContinueAnswer | Plan,
    responses=openapi.PREDICT_ANSWERS,
    openapi_extra=openapi.describe_body(Predict),
    tags=["models"],
)
@needs(Need.PREDICT)
async def predict(request: Request, model: str) -> Response:
    """Predict, and return what the heads attended to if `attention` is given, or go on if `continue` is."""
    return await _answer(model, None, request, parse_predict)


@router.post(
    "/v1/models/{model}/attention",
    response_model=PredictAnswer | Plan,
    responses=openapi.ATTENTION_ANSWERS,
    openapi_extra=openapi.describe_body(AttentionBody),
    tags=["models"],
)
@needs(Need.ATTENTION)
async def attention(request: Request, model: str) -> Response:
    """Diagnostics or weights of the heads, with the predictions of the same forward pass.

    `Accept: application/x-safetensors`, `application/x-npz` or `application/octet-stream` returns tensors
    `sequences.{i}.weights` [layers, heads, queries, keys] (or one [layers, heads] tensor per measure), `image/png` a
    picture of the maps.
    """
    return await _answer(model, None, request, parse_attention)


@router.post(
    "/v1/models/{model}/versions/{version}/predict",
    response_model=PredictAnswer | ContinueAnswer | Plan,
    responses=openapi.PREDICT_ANSWERS,
    openapi_extra=openapi.describe_body(Predict),
    tags=["models"],
)
@needs(Need.PREDICT)
async def predict_version(request: Request, model: str, version: str) -> Response:
    """As `predict`, from that version or not at all."""
    return await _answer(model, version, request, parse_predict)


@router.post(
    "/v1/models/{model}/versions/{version}/attention",
    response_model=PredictAnswer | Plan,
    responses=openapi.ATTENTION_ANSWERS,
    openapi_extra=openapi.describe_body(AttentionBody),
    tags=["models"],
)
@needs(Need.ATTENTION)
async def attention_version(request: Request, model: str, version: str) -> Response:
    """As `attention`, from that version or not at all."""
    return await _answer(model, version, request, parse_attention)


@get(router, "/v1/models", response_model=ModelList, responses=openapi.LIST_ANSWERS, tags=["models"])
@needs(Need.KEY)
async def list_models(request: Request) -> Response:
    """Every model of the repository; those that do not answer, because they are loading or failed, say why."""
    catalogue = get_catalogue(request)
    served = catalogue.models
    return answer_json({"models": [_summarise(catalogue, name, served.get(name)) for name in catalogue.versions]})


@get(router, "/v1/models/{model}", response_model=ModelBody, responses=openapi.MODEL_ANSWERS, tags=["models"])
@needs(Need.KEY)
async def show_model(request: Request, model: str) -> Response:
    """What is known of a model: card, labels, layers, limits, certificate, cost."""
    return answer_json(_describe(get_catalogue(request), find_model(request, model, None)))


@get(
    router,
    "/v1/models/{model}/versions/{version}",
    response_model=ModelBody,
    responses=openapi.MODEL_ANSWERS,
    tags=["models"],
)
@needs(Need.KEY)
async def show_version(request: Request, model: str, version: str) -> Response:
    """As `show_model`, for one version."""
    return answer_json(_describe(get_catalogue(request), find_model(request, model, version)))


@get(router, "/healthz", responses=openapi.ALIVE_ANSWERS, tags=["operation"])
@needs(Need.NOTHING)
async def healthz(_: Request) -> Response:
    """Alive: the process answers. Never touches a model."""
    return answer_json({"status": "alive"})


@get(router, "/readyz", responses=openapi.READY_ANSWERS, tags=["operation"])
@needs(Need.NOTHING)
async def readyz(request: Request) -> Response:
    """Ready: loading is over and at least one model is proven on this device and warm. Names none: anybody may ask."""
    check_ready(get_catalogue(request))
    return answer_json({"status": "ready"})


@get(router, "/metrics", responses=openapi.METRICS_ANSWERS, response_class=PlainTextResponse, tags=["operation"])
@needs(Need.KEY)
async def show_metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format (docs/metrics.md)."""
    exports: Desk = request.app.state.exports
    gpus: GpuGauges = request.app.state.gpus
    await asyncio.gather(exports.gauges.refresh(), gpus.refresh())
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.render(), media_type=CONTENT_TYPE)


async def _answer(name: str, version: str | None, request: Request, parse: Parse) -> Response:
    """The path of every question: read, check, queue, run, render."""
    settings: Settings = request.app.state.settings
    async with within_deadline(request, settings.timeout_ms) as deadline:
        return await _answer_in_time(name, version, request, parse, deadline)


async def _answer_in_time(
    name: str, version: str | None, request: Request, parse: Parse, deadline: Deadline
) -> Response:
    model = request.scope["asked"] = find_model(request, name, version)
    asked = await read_request(request, model.reader, parse)
    deadline.shorten(asked.timeout_ms)
    media_type = choose_format(request.headers.get("accept"), _formats_of(asked))
    idle: Idle = request.app.state.idle
    with idle.busy():
        if asked.attention is not None:
            return await answer_question(request, model, asked, media_type, deadline)
        answer = _answer_prediction if asked.continuation is None else _answer_continuation
        response = await answer(request, model, asked, media_type, deadline)
    sampler: Sampler = request.app.state.sampler
    return sampler.offer(model, asked, response)


async def _answer_continuation(
    request: Request, model: ServedModel, asked: PredictRequest, media_type: str, deadline: Deadline
) -> Response:
    num_bytes = held_bytes(asked, model.manifest)

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        # A stream goes on when the response has begun.
        with request.app.state.budget.hold(num_bytes), request.app.state.idle.busy():
            yield

    return await answer_continuation(request, model, asked, media_type, hold, deadline)


async def _answer_prediction(
    request: Request, model: ServedModel, asked: PredictRequest, _: str, deadline: Deadline
) -> Response:
    budget: Budget = request.app.state.budget
    num_bytes = held_bytes(asked, model.manifest)
    with budget.hold(num_bytes):
        answers = await ask(request, model, asked, frozenset(), deadline)
        make = functools.partial(_predict, model, asked, answers)
        num_entries = asked.top_k * sum(map(len, asked.positions)) + (sum(asked.lengths) if asked.has_text else 0)
        if num_bytes > LARGE_ANSWER_BYTES or num_entries > LARGE_ANSWER_ENTRIES:
            return await asyncio.to_thread(render, request, model, make)
        return render(request, model, make)


def _formats_of(asked: PredictRequest) -> Sequence[str]:
    if asked.continuation is not None:
        return stream.FORMATS
    # Predictions alone hold no tensors.
    if asked.attention is None:
        return (JSON,)
    return tuple(name for name in FORMATS if name != PNG or has_picture(asked.attention))


def _predict(model: ServedModel, asked: PredictRequest, answers: list[Answer]) -> Response:
    check_finite(answers)
    return write_predictions(describe_answer(model.name, model.version, model.reader, asked, answers))


def _summarise(catalogue: Catalogue, name: str, model: ServedModel | None) -> dict[str, Any]:
    versions = list(catalogue.versions.get(name, ()))
    if model is None or not model.batcher.is_open:
        return {"name": name, "version": None, "versions": versions, "ready": False, "reason": catalogue.explain(name)}
    manifest = model.manifest
    return {
        "name": name,
        "version": model.version,
        "versions": versions,
        "ready": True,
        # Another version should be served, and cannot be.
        **({"reason": catalogue.explain(name)} if name in catalogue.failures.by_name else {}),
        "task": manifest.task,
        "variants": sorted({layer.variant for layer in manifest.layers}),
        "num_layers": len(manifest.layers),
        "num_heads": manifest.num_heads,
    }


def _describe(catalogue: Catalogue, model: ServedModel) -> dict[str, Any]:
    return {
        **_summarise(catalogue, model.name, model),
        "reads_text": model.reader.text is not None,
        "limits": {"max_length": model.manifest.max_length},
        **{name: value for name, value in model.described.items() if name not in HIDDEN},
        "top_k": model.manifest.top_k,
        "device": model.engine.device,
        "kernels": model.kernels,
        "gpus": to_json(model.engine.gpus),
        "golden": {"logits": model.engine.report.logits, "maps": model.engine.report.maps},
        "tuning": to_json(model.tuning),
    }
