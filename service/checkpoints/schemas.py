"""What the routes of checkpoints take and answer, for OpenAPI and its examples."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, Field

from attnserve.checkpoint_files import FILES
from attnserve.service.openapi import Documented, describe_answer, describe_removal
from attnserve.service.problems import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    InsufficientStorage,
    Invalid,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)

Name = Annotated[
    str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Of a checkpoint.", examples=["mine"])
]
File = Annotated[str, Path(json_schema_extra={"enum": list(FILES)}, description="Of a checkpoint.")]


class StoredFile(BaseModel):
    """A file that was uploaded."""

    sha256: str = Field(description="Of its content, in hexadecimal.")
    num_bytes: int


class Uploaded(StoredFile):
    """Answer of an upload."""

    name: str
    file: str


class CheckpointBody(BaseModel):
    """A checkpoint."""

    name: str
    files: dict[str, StoredFile] = Field(description="By name, of config.json, model.safetensors and the rest.")


class CheckpointList(BaseModel):
    """Every checkpoint that was uploaded, by name."""

    checkpoints: list[CheckpointBody]


CONFIG = {"sha256": "32e31fc36a4e3ff31972fef1762762c3940c87e21d6ba7b39d8d9e3792d51eda", "num_bytes": 736}
WEIGHTS = {"sha256": "8b8dff63edc709b72540b52cdda49b268651410df0cda5245f83362e6dd5c239", "num_bytes": 179608}
CHECKPOINT: dict[str, Any] = {"name": "mine", "files": {"config.json": CONFIG, "model.safetensors": WEIGHTS}}
UPLOADED: dict[str, Any] = {"name": "mine", "file": "model.safetensors", **WEIGHTS}

UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file as it is.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    }
}
_REPLACED = describe_answer(
    UPLOADED,
    *(BadRequest, Conflict, PreconditionFailed, TooLarge, UnsupportedMediaType, Invalid, Overloaded),
    *(Unavailable, DeadlineExceeded, InsufficientStorage),
)
UPLOAD_ANSWERS: Documented = {
    **_REPLACED,
    200: {**_REPLACED[200], "description": "There was a file of that name; it is this one now"},
    201: {**_REPLACED[200], "description": "There was no file of that name"},
}
LIST_ANSWERS = describe_answer({"checkpoints": [CHECKPOINT]}, Unavailable)
CHECKPOINT_ANSWERS = describe_answer(CHECKPOINT, NotFound, Unavailable)
REMOVE_ANSWERS = describe_removal(NotFound, Conflict, Unavailable)
REMOVE_FILE_ANSWERS = describe_removal(NotFound, Unavailable)
