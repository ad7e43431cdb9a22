"""Bodies of requests and answers about export jobs, for OpenAPI. Requests are checked in `request`, not here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attnserve.interface import MAX_SIZE
from attnserve.jobs import STEPS

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]


class Options(BaseModel):
    """How the graph is written."""

    portable: bool = Field(
        False, description="Inline the function bodies: no custom domain in the file, and no kernel can replace them."
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=MAX_SIZE,
        description="So many of the likeliest ids or classes are chosen by the graph itself: predictions of up to "
        "them need no logits.",
    )


class ExportBody(BaseModel):
    """Body of `POST /v1/exports`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"checkpoint": "mine", "model": "mine"},
                {"checkpoint": "mine", "model": "mine", "version": 4, "precision": "float16", "activate": False},
            ]
        }
    )

    checkpoint: str = Field(
        description="Name of an uploaded checkpoint, or the absolute path of a folder that the service may read."
    )
    model: str = Field(description="Model of the repository, new or not.")
    version: int | None = Field(
        None, ge=1, le=999_999_999, description="Version that does not exist; the next free one unless given."
    )
    precision: Precision | None = Field(
        None, description="Of weights and activations, as of `attnserve export`; float32 unless given."
    )
    options: Options | None = None
    activate: bool | None = Field(
        None, description="Whether it becomes the active version once it is published; true unless given."
    )


class DeviationBody(BaseModel):
    """A largest absolute difference from PyTorch float64, over all of golden."""

    reference: float = Field(description="PyTorch's own, in the bundle's precision.")
    allowed: float
    measured: float | None = Field(None, description="ONNX Runtime's, on the machine that exported.")


class ParityBody(BaseModel):
    """How far the bundle is from PyTorch float64, and how far it may be."""

    logits: DeviationBody
    maps: DeviationBody
    reference_logits: float = Field(description="Of onnx's ReferenceEvaluator.")


class LineBody(BaseModel):
    """A line of a job's log."""

    step: str = Field(description=f"One of {', '.join(STEPS)}.")
    fraction: float = Field(description="Of the whole job that is done, from 0 to 1, by estimate.")
    message: str
    at: str = Field(description="ISO 8601, UTC.")


class ExportSummary(BaseModel):
    """An export job, as lists have it. What a newer release has ordered is null where this one cannot read it."""

    id: str
    state: State
    model: str | None = None
    version: int | None = None
    checkpoint: str | None = None
    precision: str | None = None
    options: Options | None = None
    activate: bool | None = None
    key: str | None = Field(None, description="Name of the API key that asked for it.")
    created: str
    started: str | None = None
    ended: str | None = None
    worker: str | None = Field(None, description="Who has it, or had it last.")
    step: str | None = Field(None, description="Where it is, or where it failed.")
    progress: float = Field(description="Part of it that is done, from 0 to 1, by estimate.")
    message: str | None = Field(None, description="What it said last, while it runs.")
    reason: str | None = Field(None, description="Why it failed.")
    parity: ParityBody | None = None


class ExportJob(ExportSummary):
    """An export job."""

    files: dict[str, str] | None = Field(None, description="sha256 of the files it is made of, by name.")
    table: str | None = Field(None, description="Parity by length, for people.")
    report: str | None = Field(None, description="What a failed verification measured.")
    log: list[LineBody]


class ExportList(BaseModel):
    """A page of jobs, newest first."""

    exports: list[ExportSummary]
    next: str | None = Field(None, description="Value of `after` for the next page; null if this was the last.")
