"""The routes of captures: thin, as all routes. What is asked of a capture takes no forward pass, and waits for none."""

import functools

from fastapi import APIRouter, Request, Response

from attnserve.service.attention import held_bytes
from attnserve.service.body import in_turn
from attnserve.service.budget import Budget
from attnserve.service.captures import schemas
from attnserve.service.captures.cache import describe_capture
from attnserve.service.captures.capture import count_bytes, outputs_of
from attnserve.service.captures.identity import HEADER, check_name
from attnserve.service.captures.levels import MAPS, QK
from attnserve.service.captures.make import make_capture
from attnserve.service.captures.parameters import parse_index, parse_query
from attnserve.service.captures.pyramid import TILE
from attnserve.service.captures.question import KNOWN, NUMBERS, answer_question, parse_parameters
from attnserve.service.captures.request import check_seconds, parse_capture
from attnserve.service.captures.routing import (
    FORMAT,
    LIGHT_VALUES,
    answer,
    answer_view,
    choose_type,
    find_capture,
    find_head,
    get_store,
    owner_of,
)
from attnserve.service.captures.view import Size, thumbnail_size, view_qk, view_rows, view_thumbnails, view_tile
from attnserve.service.deadline import within_deadline
from attnserve.service.formats.coding import CODINGS
from attnserve.service.formats.negotiation import JSON, PNG, TENSORS, choose_encoding
from attnserve.service.formats.picture import check_panels
from attnserve.service.formats.respond import respond
from attnserve.service.formats.tensors import Written
from attnserve.service.guard import Need, needs, require_level
from attnserve.service.idle import Idle
from attnserve.service.openapi import describe_body
from attnserve.service.routing import PlainRoute, ask, find_model, get, read_request, render
from attnserve.service.selection import parse_choice, parse_indices
from attnserve.service.selectors import parse_selector
from attnserve.service.settings import Settings

# Tensors first: whoever takes anything gets what was asked for, and no JSON of a megabyte.
VIEW_FORMATS = (*TENSORS, JSON, PNG)
QK_FORMATS = (*TENSORS, JSON)

router = APIRouter(route_class=PlainRoute, tags=["captures"])


@router.post(
    "/v1/models/{model}/captures",
    status_code=201,
    response_model=schemas.CaptureAnswer,
    responses=schemas.CAPTURE_ANSWERS,
    openapi_extra=describe_body(schemas.CaptureBody),
)
@needs(Need.ATTENTION)
async def take_capture(request: Request, model: str) -> Response:
    """Predict, and keep the queries and keys of the forward pass, so that its maps can be asked for piece by piece."""
    return await _capture(request, model, None)


@router.post(
    "/v1/models/{model}/versions/{version}/captures",
    status_code=201,
    response_model=schemas.CaptureAnswer,
    responses=schemas.CAPTURE_ANSWERS,
    openapi_extra=describe_body(schemas.CaptureBody),
)
@needs(Need.ATTENTION)
async def take_capture_of_version(request: Request, model: str, version: str) -> Response:
    """As `take_capture`, from that version or not at all."""
    return await _capture(request, model, version)


@get(
    router,
    "/v1/captures/{capture}",
    response_model=schemas.CaptureAnswer,
    responses=schemas.SHOW_ANSWERS,
    openapi_extra=schemas.SHOW_QUERY,
)
@needs(Need.ATTENTION)
async def show_capture(request: Request, capture: str) -> Response:
    """What was told of a capture when it was made."""
    found = find_capture(request, capture)
    media_type = choose_type(request, parse_query(request, (FORMAT,)), (JSON,))

    async def write(encoding: str, headers: dict[str, str]) -> Response:
        # Tokens of a long sequence are some hundred kilobytes.
        work = functools.partial(respond, Written(parts=[found.description]), media_type, encoding, headers)
        return await in_turn(request, request.app.state.encoding, work)

    return await answer(request, found, media_type, write)


@router.delete("/v1/captures/{capture}", status_code=204, responses=schemas.DELETE_ANSWERS)
@needs(Need.ATTENTION)
async def delete_capture(request: Request, capture: str) -> Response:
    """Forget a capture before it ends."""
    get_store(request).remove(capture, owner_of(request))
    return Response(status_code=204)


@get(
    router,
    "/v1/captures/{capture}/attention",
    responses=schemas.ATTENTION_ANSWERS,
    openapi_extra=schemas.ATTENTION_QUERY,
)
@needs(Need.ATTENTION)
async def show_attention(request: Request, capture: str) -> Response:
    """Diagnostics or maps, as the attention route answers them; the query has its fields."""
    found = find_capture(request, capture)
    settings: Settings = request.app.state.settings
    asked = parse_parameters(parse_query(request, KNOWN, NUMBERS), found, request)
    if asked.question.quantity == "qk":
        require_level(settings.captures, found.model, QK, "quantity")
    return await answer(request, found, asked.media_type, functools.partial(answer_question, request, found, asked))


@get(
    router,
    "/v1/captures/{capture}/rows/{layer}/{head}",
    responses=schemas.VIEW_ANSWERS,
    openapi_extra=schemas.ROWS_QUERY,
)
@needs(Need.ATTENTION)
async def show_rows(request: Request, capture: str, layer: str, head: str) -> Response:
    """Rows of one head's map: by `queries`, of which the last one is the default."""
    found = find_capture(request, capture)
    fields = parse_query(request, ("queries", "dtype", FORMAT))
    media_type, coding = choose_type(request, fields, VIEW_FORMATS), parse_choice(fields, "dtype", CODINGS, "")
    place = find_head(found, layer, head)
    (steps,) = parse_selector(fields.get("queries", "last"), "queries", found.reader, found.asked.inputs)
    size = Size(field="queries", num_values=len(steps) * found.length, media_type=media_type, coding=coding)
    view = functools.partial(view_rows, found, *place, steps)
    # A picture takes longer than its numbers.
    is_light = size.num_values <= LIGHT_VALUES and media_type != PNG
    return await answer_view(request, found, view, size, is_light=is_light)


@get(
    router, "/v1/captures/{capture}/thumbnails", responses=schemas.VIEW_ANSWERS, openapi_extra=schemas.THUMBNAILS_QUERY
)
@needs(Need.ATTENTION)
async def show_thumbnails(request: Request, capture: str) -> Response:
    """The whole maps of all heads, or of some `layers` and `heads`, in at most 64 x 64 maxima each."""
    found = find_capture(request, capture)
    fields = parse_query(request, ("layers", "heads", "dtype", FORMAT))
    media_type, coding = choose_type(request, fields, VIEW_FORMATS), parse_choice(fields, "dtype", CODINGS, "")
    layers, num_heads = found.choose_layers(fields.get("layers", "all")), found.reader.manifest.num_heads
    heads = parse_indices(fields.get("heads", "all"), "heads", num_heads, "heads").tolist()
    num_values = len(layers) * len(heads) * thumbnail_size(found.length) ** 2
    size = Size(field="layers", num_values=num_values, media_type=media_type, coding=coding)
    if media_type == PNG:
        check_panels(len(layers) * len(heads), "layers")
    view = functools.partial(view_thumbnails, found, layers, heads)
    pieces = [found.head(layer, head).thumbnail for layer in dict.fromkeys(layers) for head in dict.fromkeys(heads)]
    return await answer_view(request, found, view, size, pieces=pieces)


@get(
    router,
    "/v1/captures/{capture}/tiles/{layer}/{head}/{zoom}/{y}/{x}",
    responses=schemas.VIEW_ANSWERS,
    openapi_extra=schemas.TILE_QUERY,
)
@needs(Need.ATTENTION)
async def show_tile(request: Request, capture: str, layer: str, head: str, zoom: str, y: str, x: str) -> Response:
    """A tile of one head's map: at most 256 x 256 maxima; `zoom` 0 is the whole map in one tile."""
    found = find_capture(request, capture)
    fields = parse_query(request, ("dtype", FORMAT))
    media_type, coding = choose_type(request, fields, VIEW_FORMATS), parse_choice(fields, "dtype", CODINGS, "")
    place = find_head(found, layer, head)
    pyramid = found.head(*place).pyramid
    level = parse_index(zoom, "zoom", pyramid.num_zooms, "zooms", is_absolute=True)
    row, column = (
        parse_index(text, name, pyramid.num_tiles(level), f"tiles at zoom {level}", is_absolute=True)
        for name, text in (("y", y), ("x", x))
    )
    size = Size(field="zoom", num_values=TILE**2, media_type=media_type, coding=coding)
    return await answer_view(request, found, functools.partial(view_tile, found, *place, level, row, column), size)


@get(router, "/v1/captures/{capture}/qk/{layer}/{head}", responses=schemas.QK_ANSWERS, openapi_extra=schemas.TILE_QUERY)
@needs(Need.ATTENTION)
async def show_qk(request: Request, capture: str, layer: str, head: str) -> Response:
    """Queries and keys of one head, with what makes weights of them: normaliser, weighting, scale; and value norms."""
    found = find_capture(request, capture)
    settings: Settings = request.app.state.settings
    require_level(settings.captures, found.model, QK, "qk")
    fields = parse_query(request, ("dtype", FORMAT))
    media_type, coding = choose_type(request, fields, QK_FORMATS), parse_choice(fields, "dtype", CODINGS[:2], "")
    place = find_head(found, layer, head)
    num_values = found.length * (2 * found.layers[place[0]].layer.head_size + 2)
    size = Size(field=FORMAT, num_values=num_values, media_type=media_type, coding=coding)
    return await answer_view(request, found, functools.partial(view_qk, found, *place), size)


async def _capture(request: Request, name: str, version: str | None) -> Response:
    settings: Settings = request.app.state.settings
    budget: Budget = request.app.state.budget
    store = get_store(request)
    async with within_deadline(request, settings.timeout_ms) as deadline:
        model = request.scope["asked"] = find_model(request, name, version)
        require_level(settings.captures, model.name, MAPS, "model")
        given = check_name(request.headers.get(HEADER))
        choose_type(request, {}, (JSON,))
        encoding = choose_encoding(request.headers.get("accept-encoding"))
        asked = await read_request(request, model.reader, parse_capture)
        deadline.shorten(asked.predict.timeout_ms)
        identity = store.make_id(given, check_seconds(asked.keep_seconds, settings.capture_seconds))
        length = asked.predict.lengths[0]
        store.check_room(count_bytes(model.manifest, asked.layers, length, asked.store))
        captures = outputs_of(model.manifest, asked.layers)
        # What is captured, and the same head by head, of which half is left where it is narrowed.
        num_bytes = count_bytes(model.manifest, asked.layers, length, "computed")
        idle: Idle = request.app.state.idle
        with budget.hold(held_bytes(asked.predict, model.manifest) + 3 * num_bytes), idle.busy():
            answers = await ask(request, model, asked.predict, captures, deadline)
            make = functools.partial(make_capture, model, asked, answers[0], identity, owner_of(request))
            made = await in_turn(request, request.app.state.weighing, render, request, model, make)
        store.add(made)
    store.sweep_in_time()
    headers = {
        "Location": f"/v1/captures/{made.id}",
        "Cache-Control": "no-store",
        **describe_capture(made, store.seconds_left(made)),
    }
    return respond(Written(parts=[made.description]), JSON, encoding, headers, status=201)
