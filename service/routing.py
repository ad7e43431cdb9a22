"""What the routes of every protocol share: how they are declared, find their model, read and answer."""

import contextlib
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from attnserve.bound import DeviceFailure
from attnserve.bundle import is_version
from attnserve.service.answer import Content
from attnserve.service.body import in_turn, read_body, while_connected
from attnserve.service.budget import Budget
from attnserve.service.catalogue import Catalogue
from attnserve.service.deadline import Deadline
from attnserve.service.formats.negotiation import JSON
from attnserve.service.guard import Need, admit, describe_security, need_of
from attnserve.service.job import Answer
from attnserve.service.model import ServedModel
from attnserve.service.openapi import describe_problems
from attnserve.service.passes import make_jobs
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Forbidden, HeadTooLarge, NotFound, Problem, Unauthorized, Unavailable
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings
from attnserve.service.stages import Stages

log = logging.getLogger(__name__)

Endpoint = Callable[..., Any]
Asked = TypeVar("Asked")
Made = TypeVar("Made")

# Bodies beyond it are parsed off the event loop, so that /healthz answers meanwhile; below it a thread would cost more
# than the work.
LARGE_BODY_BYTES = 64 * 1024
# Of a model that reads text less is large: a tokenizer takes a hundred times longer over a byte than a parser.
LARGE_TEXT_BYTES = 1024
# Arrays beyond it take longer to write than a thread takes to wake.
LARGE_CONTENT_BYTES = 64 * 1024


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and the parts of its path, all text, and returns a `Response`.

    FastAPI describes it. It would search every request for parameters to convert, dependencies to solve and answers
    to validate, of which there are none here: a fifth of the time that a small request takes.

    Raises:
        TypeError: the endpoint does not say which key it needs, with `@needs`.
    """

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        need = need_of(endpoint)
        problems: tuple[type[Problem], ...] = (HeadTooLarge,)
        if need is not Need.NOTHING:
            problems += (Unauthorized,) if need is Need.KEY else (Unauthorized, Forbidden)
            security = {"security": describe_security(need)}
            options["openapi_extra"] = {**(options.get("openapi_extra") or {}), **security}
        options["responses"] = {**(options.get("responses") or {}), **describe_problems(*problems)}
        super().__init__(path, endpoint, **options)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            if need is not Need.NOTHING:
                admit(request, need)
            response = await endpoint(request, **scope["path_params"])
            await response(scope, receive, send)

        self.app = answer


def get(router: APIRouter, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """A GET route that answers HEAD too, which is what load balancers send."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        # In this order: of two routes with one path, the first one answers a wrong method with what it allows.
        router.get(path, **options)(endpoint)
        return router.head(path, include_in_schema=False)(endpoint)

    return decorate


def find_model(request: Request, name: str, version: str | None) -> ServedModel:
    """The model a path names.

    Raises:
        NotFound: no such model, or another version is served.
        Unavailable: it is loading, failed to load, or has stopped.
    """
    if version is not None and not is_version(version):
        raise NotFound.about("version", f"expected a positive integer, got {version[:32]!r}")
    return get_catalogue(request).find(name, None if version is None else int(version))


async def read_request(
    request: Request, reader: Reader, parse: Callable[[bytes, Reader], Asked], *, as_json: bool = True
) -> Asked:
    """What the body of a request asks for; its memory counts as pending until it is parsed.

    Args:
        request: its body has not been read.
        reader: of the model asked.
        parse: raises what is wrong with it.
        as_json: whether it must be JSON, by its Content-Type.
    """
    settings: Settings = request.app.state.settings
    budget: Budget = request.app.state.budget
    with contextlib.ExitStack() as held:

        def hold(num_bytes: int) -> None:
            held.enter_context(budget.hold(num_bytes, "body"))

        body = await read_body(request, settings.max_body_bytes, hold, as_json=as_json)
        begin = monotonic()
        if len(body) > LARGE_BODY_BYTES:
            asked = await in_turn(request, request.app.state.parsing, parse, body, reader)
        elif len(body) > LARGE_TEXT_BYTES and reader.text is not None:
            asked = await in_turn(request, request.app.state.tokenising, parse, body, reader)
        else:
            asked = parse(body, reader)
        get_stages(request).add("parse", begin)
        return asked


async def ask(
    request: Request, model: ServedModel, asked: PredictRequest, captures: frozenset[str], deadline: Deadline
) -> list[Answer]:
    """Queue the sequences of a request and wait for their answers, as long as its client does.

    They are those of `make_jobs`: without ablations one per sequence.

    Args:
        request: its body has been read.
        model: that is asked.
        asked: what the request asks for.
        captures: names of the outputs to capture over all steps.
        deadline: of the request.
    """
    jobs = make_jobs(asked, model.manifest, captures, stays=model.stays(asked))
    stages = get_stages(request)
    working = model.batcher.enqueue(jobs, due=deadline.at, stages=stages, field=asked.field)
    return await while_connected(request, working)


async def weigh_and_write(
    request: Request, model: ServedModel | None, compute: Callable[[], Content], write: Callable[[Content], Response]
) -> Response:
    """Compute what an answer says about attention, and write it; what is large is written in a turn of its own.

    Args:
        request: that asks.
        model: that answered; None if nobody counts, as of a capture, which may outlive its model.
        compute: what the answer says.
        write: it in its format.

    Raises:
        Overloaded: too many large answers wait to be written.
    """
    state = request.app.state

    def encode(content: Content) -> Response:
        begin = monotonic()
        response = write(content)
        get_stages(request).add("encode", begin)
        return response

    def work() -> Content | Response:
        content = render(request, model, compute)
        return content if content.num_bytes > LARGE_CONTENT_BYTES else encode(content)

    made = await in_turn(request, state.weighing, work)
    return made if isinstance(made, Response) else await in_turn(request, state.encoding, encode, made)


def render(request: Request, model: ServedModel | None, make: Callable[[], Made]) -> Made:
    """What `make` returns; how long it took is told to whoever counts.

    Raises:
        InternalError: a device failed.
        Unavailable: and answers nothing any more.
    """
    begin = monotonic()
    try:
        made = make()
    except DeviceFailure as failure:
        # Only what a model answered is on a device.
        assert model is not None
        log.error("what a device was asked about attention failed", exc_info=failure)
        raise model.batcher.judge() from failure
    end = monotonic()
    get_stages(request).add("render", begin, end)
    if model is not None:
        model.engine.observer.rendered(end - begin)
    return made


def get_stages(request: Request) -> Stages:
    """Where the stages of this request are noted."""
    stages: Stages = request.scope["stages"]
    return stages


def check_ready(catalogue: Catalogue) -> None:
    """Answer what load balancers ask.

    Raises:
        Unavailable: nobody should send requests; says why.
    """
    reason = catalogue.explain_unready()
    if reason is not None:
        raise Unavailable(reason)


def get_catalogue(request: Request) -> Catalogue:
    """The models of this app."""
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


def has_already(request: Request, tag: str) -> bool:
    """Whether `If-None-Match` says that the client has the answer of this `ETag`, which may have become weak."""
    known = [entry.strip() for entry in request.headers.get("if-none-match", "").split(",")]
    return "*" in known or tag in known or f"W/{tag}" in known


def answer_json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A document as JSON; numbers of numpy included."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, JSON)
