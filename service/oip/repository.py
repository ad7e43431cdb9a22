"""The protocol's repository extension: which models there are, and which of them are served."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from attnserve.bundle import is_version
from attnserve.service.body import read_body
from attnserve.service.catalogue import Catalogue
from attnserve.service.guard import Need, needs
from attnserve.service.oip import schemas
from attnserve.service.oip.tensors import get_field
from attnserve.service.openapi import describe_body
from attnserve.service.preprocess import parse_object
from attnserve.service.problems import BadRequest
from attnserve.service.routing import LARGE_BODY_BYTES, PlainRoute, answer_json, get_catalogue

# What tritonclient sends to have a model made up of its arguments. Ours are proven bundles or nothing.
REFUSED = ("config", "file:")

router = APIRouter(route_class=PlainRoute, tags=["open inference protocol"])


@router.post(
    "/v2/repository/index",
    responses=schemas.INDEX_ANSWERS,
    openapi_extra=describe_body(schemas.IndexBody, is_required=False),
)
@needs(Need.KEY)
async def show_index(request: Request) -> Response:
    """Every version of every model of the repository, and why those that are not ready are not."""
    document = await _read_document(request)
    return answer_json(list_repository(get_catalogue(request), only_ready=get_field(document, "ready", bool, False)))


@router.post(
    "/v2/repository/models/{model}/load",
    responses=schemas.LOAD_ANSWERS,
    openapi_extra=describe_body(schemas.LoadBody, is_required=False),
)
@needs(Need.ADMIN)
async def load(request: Request, model: str) -> Response:
    """Load the newest version, or the one that `parameters.version` names, and make it the active one.

    The answer comes when it is proven and serves; if it cannot be served, all stays as it was. Other replicas follow
    by looking at the repository.
    """
    parameters = get_field(await _read_document(request), "parameters", dict, {})
    for name in parameters:
        if name.startswith(REFUSED):
            message = "this server loads bundles of its repository as they are; expected none"
            raise BadRequest.about(f"parameters.{name[:64]}", message)
    catalogue = get_catalogue(request)
    served = await asyncio.to_thread(catalogue.activate, model, _parse_version(parameters.get("version")))
    return answer_json({"name": served.name, "version": str(served.version), "state": "READY"})


@router.post(
    "/v2/repository/models/{model}/unload",
    responses=schemas.UNLOAD_ANSWERS,
    openapi_extra=describe_body(schemas.UnloadBody, is_required=False),
)
@needs(Need.ADMIN)
async def unload(request: Request, model: str) -> Response:
    """Serve no version of a model any more, here and on all replicas; what is queued is answered."""
    get_field(await _read_document(request), "parameters", dict, {})
    await asyncio.to_thread(get_catalogue(request).deactivate, model)
    return answer_json({"name": model, "state": "UNAVAILABLE"})


def list_repository(catalogue: Catalogue, *, only_ready: bool) -> list[dict[str, str]]:
    """A row for every version; of a model whose folder could never be read, one without a version."""
    models, failures, loading = catalogue.models, catalogue.failures.by_name, catalogue.loading
    rows = []
    for name, versions in catalogue.versions.items():
        model, failure = models.get(name), failures.get(name)
        if not versions and not only_ready:
            rows.append({"name": name, "state": "UNAVAILABLE", "reason": catalogue.explain(name)})
        for version in versions:
            row = {"name": name, "version": str(version), "state": "UNAVAILABLE", "reason": "not the active version"}
            if model is not None and model.version == version and model.batcher.is_open:
                is_followed = failure is None or failure.version is not None
                row |= {"state": "READY", "reason": "" if is_followed else catalogue.explain(name)}
            elif loading == (name, version):
                row |= {"state": "LOADING", "reason": "is being loaded"}
            elif (failure is not None and failure.version in (version, None)) or (model is None and failure is None):
                row["reason"] = catalogue.explain(name)
            if row["state"] == "READY" or not only_ready:
                rows.append(row)
    return rows


async def _read_document(request: Request) -> dict[str, Any]:
    body = await read_body(request, LARGE_BODY_BYTES, lambda _: None, as_json=False)
    return parse_object(body) if body else {}


def _parse_version(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) not in (int, str) or not is_version(str(value)):
        raise BadRequest.about("parameters.version", f"expected a positive integer, got {str(value)[:32]!r}")
    return int(value)
