"""The routes: thin. Each reads, asks, and renders; what can go wrong is raised as a `Problem` further in."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from attnserve.bundle import Manifest
from attnserve.records import to_json
from attnserve.service.answer import JSON, choose_format, describe_answer, render_binary, render_json
from attnserve.service.attention import captures_for, check_size, compute_arrays
from attnserve.service.catalogue import Catalogue, ServedModel
from attnserve.service.engine import Job
from attnserve.service.preprocess import PredictRequest, parse_attention, parse_predict
from attnserve.service.problems import NotFound, Unavailable, UnsupportedMediaType, too_large
from attnserve.service.schemas import AttentionBody, ModelBody, ModelList, Predict, PredictAnswer, ProblemBody
from attnserve.service.settings import Settings

Parse = Callable[[bytes, Manifest], PredictRequest]

# Bodies beyond this are parsed off the event loop, so that /healthz answers meanwhile.
LARGE_BODY_BYTES = 64 * 1024
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody} for status in (400, 404, 406, 413, 415, 422, 429, 500, 503)
}

router = APIRouter()


def _body_of(model: type[Predict] | type[AttentionBody]) -> dict[str, Any]:
    """Describe a body that FastAPI does not parse."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    # `Selection` is the only definition, and nothing else refers to it.
    for name, definition in definitions.items():
        schema = _inline(schema, f"#/components/schemas/{name}", definition)
    examples = {f"example {number}": {"value": value} for number, value in enumerate(schema.pop("examples"), 1)}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema, "examples": examples}}}}


def _inline(value: Any, reference: str, definition: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if value.get("$ref") == reference:
            return definition
        return {key: _inline(item, reference, definition) for key, item in value.items()}
    return [_inline(item, reference, definition) for item in value] if isinstance(value, list) else value


@router.post(
    "/v1/models/{model}/predict",
    response_model=PredictAnswer,
    responses=PROBLEMS,
    openapi_extra=_body_of(Predict),
    tags=["models"],
)
async def predict(model: str, request: Request) -> Response:
    """Predict, and return what the heads attended to if `attention` is given."""
    return await _answer(model, None, request, parse_predict)


@router.post(
    "/v1/models/{model}/attention",
    response_model=PredictAnswer,
    responses=PROBLEMS,
    openapi_extra=_body_of(AttentionBody),
    tags=["models"],
)
async def attention(model: str, request: Request) -> Response:
    """Diagnostics or weights of the heads, with the predictions of the same forward pass.

    `Accept: application/x-safetensors` or `application/x-npz` returns tensors `sequences.{i}.weights`
    [layers, heads, queries, keys] (or one [layers, heads] tensor per measure).
    """
    return await _answer(model, None, request, parse_attention)


@router.post(
    "/v1/models/{model}/versions/{version}/predict",
    response_model=PredictAnswer,
    responses=PROBLEMS,
    openapi_extra=_body_of(Predict),
    tags=["models"],
)
async def predict_version(model: str, version: str, request: Request) -> Response:
    """As `predict`, from that version or not at all."""
    return await _answer(model, version, request, parse_predict)


@router.post(
    "/v1/models/{model}/versions/{version}/attention",
    response_model=PredictAnswer,
    responses=PROBLEMS,
    openapi_extra=_body_of(AttentionBody),
    tags=["models"],
)
async def attention_version(model: str, version: str, request: Request) -> Response:
    """As `attention`, from that version or not at all."""
    return await _answer(model, version, request, parse_attention)


@router.get("/v1/models", response_model=ModelList, tags=["models"])
async def list_models(request: Request) -> Response:
    """Every model of the repository, those that failed to load included."""
    catalogue = _catalogue(request)
    failed = [{"name": name, "version": None, "versions": [], "ready": False} for name in sorted(catalogue.failures)]
    served = [_summarise(catalogue.models[name]) for name in sorted(catalogue.models)]
    return _json({"models": served + failed})


@router.get("/v1/models/{model}", response_model=ModelBody, responses=PROBLEMS, tags=["models"])
async def show_model(model: str, request: Request) -> Response:
    """What is known of a model: card, labels, layers, limits, certificate, cost."""
    return _json(_describe(_catalogue(request).find(model)))


@router.get("/v1/models/{model}/versions/{version}", response_model=ModelBody, responses=PROBLEMS, tags=["models"])
async def show_version(model: str, version: str, request: Request) -> Response:
    """As `show_model`, for one version."""
    return _json(_describe(_catalogue(request).find(model, _parse_version(version))))


@router.get("/healthz", tags=["operation"])
async def healthz() -> Response:
    """Alive: the process answers. Never touches a model."""
    return _json({"status": "alive"})


@router.get("/readyz", responses={503: {"model": ProblemBody}}, tags=["operation"])
async def readyz(request: Request) -> Response:
    """Ready: at least one model is loaded, proven on this device and warm."""
    catalogue = _catalogue(request)
    if not catalogue.is_ready:
        reason = "models are being loaded" if catalogue.is_loading else "no model could be loaded"
        raise Unavailable(reason, headers={"Retry-After": "2"})
    return _json({"status": "ready", "models": sorted(catalogue.models), "failed": sorted(catalogue.failures)})


async def _answer(name: str, version: str | None, request: Request, parse: Parse) -> Response:
    """The path of every question: read, check, queue, run, render."""
    settings: Settings = request.app.state.settings
    model = _catalogue(request).find(name, None if version is None else _parse_version(version))
    media_type = choose_format(request.headers.get("accept"))
    body = await read_body(request, settings.max_body_bytes)
    if len(body) > LARGE_BODY_BYTES:
        asked = await asyncio.to_thread(parse, body, model.manifest)
    else:
        asked = parse(body, model.manifest)
    captures: frozenset[str] = frozenset()
    if asked.attention is not None:
        check_size(asked, as_json=media_type == JSON, max_response_bytes=settings.max_response_bytes)
        captures = captures_for(model.manifest, asked.attention)
    jobs = [
        Job(tokens=tokens, positions=positions, captures=captures)
        for tokens, positions in zip(asked.sequences, asked.positions, strict=True)
    ]
    answers = await model.batcher.submit(jobs)

    def render() -> Response:
        document = describe_answer(model.name, model.version, model.manifest, asked, answers)
        arrays = None if asked.attention is None else compute_arrays(model.engine.runtime, asked, answers)
        if arrays is None or media_type == JSON:
            return render_json(document, asked, arrays)
        return render_binary(document, arrays, media_type)

    # Small answers are rendered at once: a thread would cost more than the work.
    if asked.attention is None and asked.top_k * sum(map(len, asked.positions)) <= 256:
        return render()
    return await asyncio.to_thread(render)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body, refused as soon as it passes the limit.

    Raises:
        UnsupportedMediaType: a Content-Type other than JSON is declared.
        TooLarge: longer than `limit_bytes`.
    """
    media_type = request.headers.get("content-type", JSON).split(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise UnsupportedMediaType(
            f"Content-Type: expected {JSON}, got {media_type[:64]!r} (curl: use --json instead of -d)"
        )
    length = request.headers.get("content-length", "")
    chunks, size = [], int(length) if length.isdigit() else 0
    if size <= limit_bytes:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit_bytes:
                break
            chunks.append(chunk)
    if size > limit_bytes:
        raise too_large("body", f"expected at most {limit_bytes} bytes, got more")
    return b"".join(chunks)


def _parse_version(text: str) -> int:
    if not text.isdigit():
        raise NotFound(f"version: expected a positive integer, got {text[:32]!r}")
    return int(text[:18])


def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type=JSON)


def _summarise(model: ServedModel) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": model.name,
        "version": model.version,
        "versions": list(model.versions),
        "ready": True,
        "task": manifest.task,
        "variants": sorted({layer.variant for layer in manifest.layers}),
        "num_layers": len(manifest.layers),
        "num_heads": manifest.num_heads,
    }


def _describe(model: ServedModel) -> dict[str, Any]:
    manifest = model.manifest
    described = to_json(manifest)
    kept = ("causal", "vocabulary_size", "labels", "card", "warnings", "layers", "provenance", "certificate")
    return {
        **_summarise(model),
        "limits": {"max_length": manifest.max_length},
        **{name: described[name] for name in kept},
        "device": model.engine.runtime.device,
        "golden": {"logits": model.engine.report.logits, "maps": model.engine.report.maps},
        "cost": to_json(model.engine.cost),
    }


