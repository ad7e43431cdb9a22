"""Routes of checkpoints: files come in, are listed, and go."""

from fastapi import APIRouter, Request, Response

from attnserve.checkpoints import Stored
from attnserve.service.checkpoints import schemas
from attnserve.service.checkpoints.headers import tag_of
from attnserve.service.checkpoints.schemas import File, Name
from attnserve.service.checkpoints.uploads import Uploads
from attnserve.service.deadline import within_deadline
from attnserve.service.guard import Need, needs
from attnserve.service.problems import NotFound
from attnserve.service.routing import PlainRoute, answer_json, get

router = APIRouter(route_class=PlainRoute, tags=["checkpoints"])


@router.put(
    "/v1/checkpoints/{name}/{file}",
    response_model=schemas.Uploaded,
    responses=schemas.UPLOAD_ANSWERS,
    openapi_extra=schemas.UPLOAD_BODY,
)
@needs(Need.ADMIN)
async def put_file(request: Request, name: Name, file: File) -> Response:
    """Store a file of a checkpoint, in the place of the one that may be there: all of it, or nothing.

    `Content-Digest: sha-256=:...:` (RFC 9530) is compared with what came; `If-Match` and `If-None-Match` with the
    `ETag` of what is there. `Timeout-Ms` ends an upload that takes longer.
    """
    # The service's own deadline is of questions: how long an upload may take, only its sender knows.
    async with within_deadline(request, 0):
        stored = await _uploads(request).receive(request, name, file)
    headers = {"ETag": tag_of(stored.sha256), "Location": f"/v1/checkpoints/{name}/{file}"}
    return answer_json({"name": name, "file": file, **_describe(stored)}, 201 if stored.is_new else 200, headers)


@router.head("/v1/checkpoints/{name}/{file}", include_in_schema=False)
@needs(Need.ADMIN)
async def find_file(request: Request, name: Name, file: File) -> Response:
    """The `ETag` and size of a file."""
    uploads = _uploads(request)
    stored = await uploads.ask(uploads.checkpoints.find, name, file)
    if stored is None:
        raise NotFound.about("file", f"expected one that {name[:64]} has, got {file[:64]!r}")
    return Response(headers={"ETag": tag_of(stored.sha256), "Content-Length": str(stored.num_bytes)})


@router.delete("/v1/checkpoints/{name}/{file}", status_code=204, responses=schemas.REMOVE_FILE_ANSWERS)
@needs(Need.ADMIN)
async def remove_file(request: Request, name: Name, file: File) -> Response:
    """Remove a file of a checkpoint; the checkpoint goes with the last one."""
    uploads = _uploads(request)
    await uploads.ask(uploads.checkpoints.remove_file, name, file)
    return Response(status_code=204)


@get(router, "/v1/checkpoints", response_model=schemas.CheckpointList, responses=schemas.LIST_ANSWERS)
@needs(Need.ADMIN)
async def list_checkpoints(request: Request) -> Response:
    """Every checkpoint that was uploaded."""
    uploads = _uploads(request)
    found = await uploads.ask(uploads.checkpoints.describe_all)
    return answer_json({"checkpoints": [_describe_checkpoint(name, files) for name, files in found.items()]})


@get(router, "/v1/checkpoints/{name}", response_model=schemas.CheckpointBody, responses=schemas.CHECKPOINT_ANSWERS)
@needs(Need.ADMIN)
async def show_checkpoint(request: Request, name: Name) -> Response:
    """The files of a checkpoint: hashes and sizes."""
    uploads = _uploads(request)
    return answer_json(_describe_checkpoint(name, await uploads.ask(uploads.checkpoints.describe, name)))


@router.delete("/v1/checkpoints/{name}", status_code=204, responses=schemas.REMOVE_ANSWERS)
@needs(Need.ADMIN)
async def remove_checkpoint(request: Request, name: Name) -> Response:
    """Remove a checkpoint. Exports that have been asked for go on: they have its content."""
    uploads = _uploads(request)
    await uploads.ask(uploads.checkpoints.remove, name)
    return Response(status_code=204)


def _describe_checkpoint(name: str, files: dict[str, Stored]) -> dict[str, object]:
    return {"name": name, "files": {file: _describe(stored) for file, stored in files.items()}}


def _describe(stored: Stored) -> dict[str, object]:
    return {"sha256": stored.sha256, "num_bytes": stored.num_bytes}


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads
