"""The routes of export jobs: thin. What may block is asked in threads."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from attnserve.records import to_json
from attnserve.service.body import in_turn, read_body
from attnserve.service.exports import openapi
from attnserve.service.exports.desk import Desk
from attnserve.service.exports.job import Job, describe_job
from attnserve.service.exports.listing import list_jobs
from attnserve.service.exports.placement import find_placed, place
from attnserve.service.exports.request import (
    MAX_BODY_BYTES,
    SEEN_ALL,
    check_id,
    choose_id,
    parse_export,
    parse_last_event,
    parse_list,
    write_place,
)
from attnserve.service.exports.schemas import ExportBody, ExportJob, ExportList
from attnserve.service.exports.watch import Ended, Event, Said
from attnserve.service.formats.negotiation import EVENTS, choose_format
from attnserve.service.guard import Need, needs
from attnserve.service.keys import Key
from attnserve.service.openapi import describe_body
from attnserve.service.problems import Conflict, NotFound
from attnserve.service.routing import PlainRoute, answer_json, get
from attnserve.service.stream import EVENT_HEADERS, write_event

router = APIRouter(route_class=PlainRoute, tags=["exports"])


@router.post(
    "/v1/exports",
    status_code=202,
    response_model=ExportJob,
    responses=openapi.START_ANSWERS,
    openapi_extra={**describe_body(ExportBody), "parameters": openapi.START_PARAMETERS},
)
@needs(Need.ADMIN)
async def start(request: Request) -> Response:
    """Export a checkpoint, as it is now, to a new version of a model: a job, which a worker takes.

    With `Idempotency-Key`, a request that is sent again is answered with the job that it made the first time.
    """
    desk = get_desk(request)
    asked = parse_export(await read_body(request, MAX_BODY_BYTES, lambda _: None))
    key: Key | None = request.scope.get("key")
    name = None if key is None else key.name
    repeated = choose_id(request.headers, name)
    if repeated is not None:
        # Before the files are read, which may have changed since.
        placed = await desk.client.ask(lambda queue: find_placed(queue, repeated, asked))
        if placed is not None:
            return await _answer_started(request, placed)
    job_id = repeated or str(uuid.uuid4())
    if asked.is_path:
        files = await in_turn(request, desk.hashing, desk.pin, asked.checkpoint)
    else:
        files = await asyncio.to_thread(desk.pin, asked.checkpoint)
    job = await desk.client.ask(lambda queue: place(queue, desk.repository, asked, files, job_id=job_id, key=name))
    return await _answer_started(request, job)


@get(
    router,
    "/v1/exports",
    response_model=ExportList,
    responses=openapi.LIST_ANSWERS,
    openapi_extra={"parameters": openapi.LIST_PARAMETERS},
)
@needs(Need.ADMIN)
async def show_list(request: Request) -> Response:
    """Export jobs, newest first."""
    asked = parse_list(request.query_params.multi_items())
    page = await get_desk(request).client.ask(lambda queue: list_jobs(queue, asked))
    next_place = None if page.next is None else write_place(page.next)
    return answer_json({"exports": [describe_job(job) for job in page.jobs], "next": next_place})


@get(router, "/v1/exports/{id}", response_model=ExportJob, responses=openapi.JOB_ANSWERS)
@needs(Need.ADMIN)
async def show(request: Request, id: str) -> Response:
    """An export job: how far it is, all that it said, and what came of it."""
    return await _answer_job(request, await _find(request, id))


@get(
    router,
    "/v1/exports/{id}/events",
    responses=openapi.EVENTS_ANSWERS,
    openapi_extra={"parameters": openapi.EVENTS_PARAMETERS},
)
@needs(Need.ADMIN)
async def show_events(request: Request, id: str) -> Response:
    """What a job says, as it says it: server-sent events `progress`, and a last one, `end`, with the job."""
    desk = get_desk(request)
    choose_format(request.headers.get("accept"), (EVENTS,))
    start = parse_last_event(request.headers)
    job = await _find(request, id)
    if start is None:
        # What tells browsers to ask no more.
        return Response(status_code=204)
    desk.watches.check_room()
    if request.method == "HEAD":
        return Response(headers=EVENT_HEADERS, media_type=EVENTS)
    return StreamingResponse(_write_events(desk, job.id, start), headers=EVENT_HEADERS, media_type=EVENTS)


@router.delete("/v1/exports/{id}", response_model=ExportJob, responses=openapi.CANCEL_ANSWERS)
@needs(Need.ADMIN)
async def cancel(request: Request, id: str) -> Response:
    """Cancel a job: one that is queued is never begun, one that runs is stopped within seconds."""
    job = await _find(request, id)
    if not job.is_over:
        await get_desk(request).client.ask(lambda queue: queue.cancel(job.id))
        job = await _find(request, id)
        if job.state == "cancelled":
            return await _answer_job(request, job)
    has_ended = "was cancelled" if job.state == "cancelled" else f"has {job.state}"
    raise Conflict.about("id", f"expected a job that is queued or running, got one that {has_ended}")


def get_desk(request: Request) -> Desk:
    """What this app has for exports."""
    desk: Desk = request.app.state.exports
    return desk


async def _find(request: Request, job_id: str) -> Job:
    check_id(job_id)
    job = await get_desk(request).client.ask(lambda queue: queue.find(job_id))
    if job is None:
        raise NotFound.about("id", f"expected the id of an export, got {job_id!r}")
    return job


async def _answer_job(request: Request, job: Job) -> Response:
    """A job with its log."""
    log = await get_desk(request).client.ask(lambda queue: queue.read_log(job.id, 0))
    return answer_json(describe_job(job, log))


async def _answer_started(request: Request, job: Job) -> Response:
    response = await _answer_job(request, job)
    response.status_code = 202
    response.headers["Location"] = f"/v1/exports/{job.id}"
    return response


async def _write_events(desk: Desk, job_id: str, start: int) -> AsyncIterator[bytes]:
    async with aclosing(desk.watches.follow(job_id, start)) as events:
        async for event in events:
            yield _write(event)


def _write(event: Event) -> bytes:
    if isinstance(event, Said):
        return write_event("progress", orjson.dumps(to_json(event.line)), str(event.number))
    if isinstance(event, Ended):
        return write_event("end", orjson.dumps(describe_job(event.job, event.log)), SEEN_ALL)
    # A comment.
    return b":\n\n"
