"""What the routes of every protocol share: how they are declared, find their model and answer with JSON."""

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from attnserve.bundle import is_version
from attnserve.service.answer import JSON
from attnserve.service.catalogue import Catalogue, ServedModel
from attnserve.service.problems import NotFound
from attnserve.service.sequences import Reader

Endpoint = Callable[..., Any]

# Bodies beyond it are parsed off the event loop, so that /healthz answers meanwhile; below it a thread would cost more
# than the work.
LARGE_BODY_BYTES = 64 * 1024
# Of a model that reads text less is large: a tokenizer takes a hundred times longer over a byte than a parser.
LARGE_TEXT_BYTES = 1024


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


def is_long_to_parse(body: bytes, reader: Reader) -> bool:
    """Whether a body should be parsed off the event loop."""
    return len(body) > (LARGE_BODY_BYTES if reader.text is None else LARGE_TEXT_BYTES)


def get_catalogue(request: Request) -> Catalogue:
    """The models of this app."""
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


def answer_json(document: Any) -> Response:
    """A document as JSON; numbers of numpy included."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)
