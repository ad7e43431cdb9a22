"""`create_app`: the composition root."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

import attnserve
from attnserve.checkpoints import Checkpoints
from attnserve.jobs import locate_checkpoints
from attnserve.machine import count_cores, memory_limit
from attnserve.service import routes
from attnserve.service.access import Access
from attnserve.service.body import IS_READING
from attnserve.service.budget import Budget
from attnserve.service.captures import routes as captures
from attnserve.service.captures.store import CaptureStore
from attnserve.service.catalogue import Catalogue
from attnserve.service.checkpoints import routes as checkpoints
from attnserve.service.checkpoints.uploads import Uploads
from attnserve.service.exports import routes as exports_routes
from attnserve.service.exports.desk import Desk, make_desk
from attnserve.service.gpu_gauges import GpuGauges
from attnserve.service.guard import SCHEMES
from attnserve.service.idle import Idle
from attnserve.service.keyring import Keyring
from attnserve.service.metrics import Metrics
from attnserve.service.oip import repository as oip_repository
from attnserve.service.oip import routes as oip
from attnserve.service.problems import Fault, InternalError, Problem, render_problem
from attnserve.service.sampling import Sampler
from attnserve.service.turns import Turns
from attnserve.service.viewer import routes as viewer

if TYPE_CHECKING:
    # An extra.
    from attnserve.service.tracing import Tracing

log = logging.getLogger(__name__)

# Of the 5 to 32 threads that asyncio keeps.
MAX_WEIGHING = MAX_TOKENISING = 8
MAX_ENCODING = 4
MAX_INVITING = 4


class _App(FastAPI):
    """FastAPI finds security schemes among the parameters of endpoints, which ours have none of."""

    def openapi(self) -> dict[str, Any]:
        """The document, with the ways to send a key."""
        document = super().openapi()
        document.setdefault("components", {})["securitySchemes"] = SCHEMES
        return document


def create_app(
    catalogue: Catalogue,
    *,
    metrics: Metrics | None = None,
    tracing: "Tracing | None" = None,
    exports: Desk | None = None,
    on_loaded: Callable[[], None] = lambda: None,
    on_failure: Callable[[BaseException], None] = lambda _: None,
) -> FastAPI:
    """The service for one catalogue; models are loaded in a thread while /healthz already answers.

    Args:
        catalogue: not loaded yet.
        metrics: of this app alone.
        tracing: told of every request, if anybody is.
        exports: how export jobs are asked for; what settings say unless given.
        on_loaded: told, in the thread that loads, when the models that there are have been loaded.
        on_failure: told when loading ends in an error that leaves nothing to serve, such as a missing device.

    Raises:
        ValueError: the keys file cannot be read, or is wrong.
    """

    def follow() -> None:
        catalogue.load()
        on_loaded()
        catalogue.watch()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(follow))
        loading.add_done_callback(lambda task: _report(task, on_failure))
        sweeping = asyncio.create_task(uploads.keep_clean())
        yield
        catalogue.stop()
        sweeping.cancel()
        await asyncio.to_thread(uploads.close)
        with contextlib.suppress(Exception):
            await loading
        await desk.client.close()
        app.state.sampler.close()
        await asyncio.to_thread(catalogue.close)
        app.state.encoding.close()
        app.state.inviting.close()

    app = _App(
        title="attnserve",
        version=attnserve.__version__,
        description="Predictions of transformers with expressive, elliptical or dot-product attention, "
        "and what every head looked at.",
        lifespan=lifespan,
        # A redirect would be built from the Host header, and clients do not send a body twice.
        redirect_slashes=False,
        # Told by the environment, FastAPI would send spans of its own, with paths and queries in them.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    metrics = Metrics() if metrics is None else metrics
    metrics.show_models(catalogue)
    app.state.exports = desk = make_desk(catalogue) if exports is None else exports
    metrics.registry.register(desk.gauges)
    app.state.gpus = GpuGauges(is_used=catalogue.settings.device != "cpu")
    metrics.registry.register(app.state.gpus)
    app.state.metrics = metrics
    app.state.catalogue = catalogue
    app.state.settings = settings = catalogue.settings
    # None where there are no keys, and everybody may ask.
    app.state.keyring = Keyring(settings.keys, settings.keys_file) if settings.keys or settings.keys_file else None
    app.state.uploads = uploads = Uploads(
        Checkpoints(locate_checkpoints(catalogue.repository.folder, settings.checkpoints)),
        max_weights_bytes=settings.max_checkpoint_bytes,
    )
    app.state.budget = Budget(catalogue.settings.max_pending_bytes or memory_limit() // 4)
    # Threads are few: those who may take one for long wait their turn here. Large bodies go one at a time: parsing
    # holds the interpreter's lock anyway, and a document takes many times the memory of its body.
    app.state.parsing = asyncio.Semaphore(1)
    # Versions to compare with: each is loaded and proven, and takes the room of the one before.
    app.state.inviting = Turns(1, max_waiting=MAX_INVITING, work="versions")
    # Tokenizers let go of it, and wait for no document.
    app.state.tokenising = asyncio.Semaphore(min(count_cores(), MAX_TOKENISING))
    app.state.weighing = asyncio.Semaphore(min(count_cores(), MAX_WEIGHING))
    # Large answers take long to cast and compress, and wait for nothing but each other.
    app.state.encoding = Turns(
        min(count_cores(), MAX_ENCODING), max_waiting=settings.max_encoding_queue, work="encoding"
    )
    app.state.captures = CaptureStore(settings.capture_bytes or memory_limit() // 8)
    metrics.show_captures(app.state.captures)
    # Nobody waits for what is sampled.
    app.state.idle = Idle()
    app.state.sampler = Sampler(
        settings.sample_heads,
        max_length=settings.sample_heads_length,
        idle=app.state.idle,
        generator=random.Random(),
    )
    # Not `include_router`, behind which every request is matched twice. What is asked most comes first.
    routers = (
        *(routes.router, captures.router, oip.router, oip_repository.router),
        *(checkpoints.router, exports_routes.router, viewer.router),
    )
    app.router.routes[:0] = [route for router in routers for route in router.routes]
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_bug)
    app.add_middleware(Access, metrics=metrics, catalogue=catalogue, tracing=tracing)
    return app


def _report(task: "asyncio.Task[None]", on_failure: Callable[[BaseException], None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("models cannot be loaded: %s", error)
        on_failure(error)


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.scope["reason"] = error.reason
    return _render(request, error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    # Not `request.url`, which is built from the Host header and raises where that is no host.
    got = f"got {request.method} {request.scope['path'][:64]!r}"
    if error.status_code == 404:
        fault = Fault(field="path", message=f"expected a route that /openapi.json lists, {got}")
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_list_methods(request))
        fault = Fault(field="method", message=f"expected {headers['Allow']}, {got}")
    else:
        fault = Fault(field="request", message=str(error.detail))
    problem = Problem(f"{fault.field}: {fault.message}", [fault], headers)
    problem.status, problem.title = error.status_code, str(error.detail).capitalize()
    return _render(request, problem)


def _list_methods(request: Request) -> list[str]:
    """Of all routes with the path of a request: Starlette says those of the first one."""
    routes = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes for method in getattr(route, "methods", ())})


def _render(request: Request, problem: Problem) -> Response:
    if "expect" in request.headers and not request.scope.get(IS_READING):
        # The client has been waiting for leave to send its body. Whether it will send it now is anybody's guess, and
        # over a connection that is kept it would be taken for the next request, or that for the body.
        problem.headers = {**problem.headers, "Connection": "close"}
    return render_problem(problem)


async def _answer_nobody(_: Request, __: Exception) -> Response:
    """The client left: nothing to say, and nothing for the log."""
    return Response(status_code=499)


async def _answer_bug(_: Request, __: Exception) -> Response:
    """A bug. Starlette raises it again, so that uvicorn logs the traceback and closes the connection."""
    message = "this is a bug in attnserve; the service's log has the traceback"
    return render_problem(InternalError(message, headers={"Connection": "close"}))
