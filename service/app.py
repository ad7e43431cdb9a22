"""`create_app`: the composition root."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

import attnserve
from attnserve.service.catalogue import Catalogue
from attnserve.service.problems import InternalError, Problem, render_problem
from attnserve.service.routes import router

log = logging.getLogger(__name__)


def create_app(catalogue: Catalogue, *, on_failure: Callable[[BaseException], None] = lambda _: None) -> FastAPI:
    """The service for one catalogue; models are loaded in a thread while /healthz already answers.

    Args:
        catalogue: not loaded yet.
        on_failure: told when loading ends in an error that leaves nothing to serve, such as a missing device.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(catalogue.load))
        loading.add_done_callback(lambda task: _report(task, on_failure))
        yield
        with contextlib.suppress(Exception):
            await loading
        await asyncio.to_thread(catalogue.close)

    app = FastAPI(
        title="attnserve",
        version=attnserve.__version__,
        description="Predictions of transformers with expressive, elliptical or dot-product attention, "
        "and what every head looked at.",
        lifespan=lifespan,
    )
    app.state.catalogue = catalogue
    app.state.settings = catalogue.settings
    app.include_router(router)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_bug)
    return app


def _report(task: "asyncio.Task[None]", on_failure: Callable[[BaseException], None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("models cannot be loaded: %s", error)
        on_failure(error)


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return render_problem(error)


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    """Starlette's own: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    problem = Problem(str(error.detail), headers=dict(error.headers or {}))
    problem.status, problem.title = error.status_code, str(error.detail)
    return render_problem(problem)


async def _answer_bug(request: Request, error: Exception) -> Response:
    """A bug: the traceback goes to the log, never to the client."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return render_problem(InternalError("this is a bug in attnserve; the service's log has the traceback"))
