"""Settings of the service: one declaration gives default, bounds, help, environment variable, flag and docs page."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_settings import NoDecode, SettingsConfigDict

from attnserve.checkpoint_files import parse_folders
from attnserve.flags import ENV_PREFIX
from attnserve.jobs import check_database
from attnserve.service.captures.levels import parse_levels
from attnserve.service.compute_settings import ComputeSettings
from attnserve.service.cost import Cost, parse_costs
from attnserve.service.listening_settings import ListeningSettings

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def _check_collector(given: str) -> str:
    if not re.fullmatch(r"(https?://[^\s/?#@]+(/[^\s?#]*)?)?", given):
        raise ValueError("expected http(s)://HOST[:PORT][/PATH] without credentials or query, got something else")
    return given


class Settings(ComputeSettings, ListeningSettings):
    """Every setting, by flag (`--max-queue`), environment variable (`ATTNSERVE_MAX_QUEUE`) or file (`max_queue:`).

    The flag wins over the variable, the variable over the file, the file over the default (`configuration.py`).
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    poll_seconds: float = Field(
        2.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="How often the repository is looked at for new versions and aliases; 0 is never. A look takes "
        "a few system calls per model.",
    )
    max_wait_ms: float = Field(
        0.0,
        ge=0,
        le=10_000,
        allow_inf_nan=False,
        description="How long a free engine waits for company. 0 is work-conserving and nearly always best: "
        "while one batch runs, the next one gathers by itself.",
    )
    max_queue: int = Field(
        4096,
        ge=1,
        description="Sequences waiting per model, those not counted that an idle engine is about to start; more are "
        "answered 429 with Retry-After. Choose what is answered within the time that clients wait: a longer queue only "
        "makes everybody late.",
    )
    timeout_ms: float = Field(
        0.0,
        ge=0,
        le=24 * 3600 * 1000,
        allow_inf_nan=False,
        description="How long a request may take that names no timeout of its own (header Timeout-Ms, field "
        "`timeout_ms`); 0 is no limit. Work that is late is dropped and answered 504. Behind a gateway, choose a "
        "little less than it waits.",
    )
    max_batch_ms: float = Field(
        100.0,
        gt=0,
        le=60_000,
        allow_inf_nan=False,
        description="Estimated time a batch of several sequences may take: what those behind it wait. A few times the "
        "time of one run is enough; longer batches gain nothing, and need more memory.",
    )
    max_batch_bytes: int = Field(
        0,
        ge=0,
        description="Memory one batch may need by estimate; 0 is half of what this process may use. Less where several "
        "models are busy at once. A sequence that needs more is answered 413 with the longest length that fits.",
    )
    max_pending_bytes: int = Field(
        0,
        ge=0,
        description="Memory that requests in flight may take outside of batches: bodies until they are parsed, and "
        "logits, queries and keys until they are answered; 0 is a quarter of what this process may use. A request that "
        "needs more is answered 413, one that finds too little left 429.",
    )
    max_body_bytes: int = Field(
        16 * MIB,
        ge=KIB,
        description="Largest request body, enforced while it is read; beyond it 413. The default holds some three "
        "million ids as JSON; parsing takes several times its size.",
    )
    max_response_bytes: int = Field(
        64 * MIB,
        ge=KIB,
        description="Largest binary answer; beyond it 413 before any work starts. Maps grow with the square of the "
        "length: the default holds one head over 4096 steps.",
    )
    capture_bytes: int = Field(
        0,
        ge=0,
        description="Memory that captures may take; 0 is an eighth of what this process may use. Those that nobody "
        "used for longest make room for new ones. One of 6 layers of 8 heads of size 32 over 4096 steps takes 52 MB.",
    )
    capture_seconds: float = Field(
        300.0,
        ge=1,
        le=7 * 24 * 3600,
        allow_inf_nan=False,
        description="How long captures are kept, unless a client wants them for less.",
    )
    captures: Annotated[
        dict[str, str],
        NoDecode,
        PlainValidator(parse_levels),
        WithJsonSchema({"accepts": "a level, or levels by model"}),
    ] = Field(
        {},
        description="What captures show: `off`, there are none; `maps`, all but queries and keys; `qk`, these too, "
        'as by default. One word for every model, or JSON by model with `*` for those not named: `{"*": "maps"}`. '
        "Queries and keys tell of the weights: where it is not `qk`, no other route hands them out either.",
    )
    max_encoding_queue: int = Field(
        64,
        ge=1,
        description="Large answers that wait to be cast, compressed and written, beside those that are; more are "
        "answered 429. Each holds its weights meanwhile, at most `--max-response-bytes`.",
    )
    drain_delay_ms: float = Field(
        0.0,
        ge=0,
        le=600_000,
        allow_inf_nan=False,
        description="How long a service that was told to stop (SIGTERM) goes on answering while /readyz says 503 "
        "already: what a load balancer needs to notice, a little more than the interval of its checks.",
    )
    max_drain_seconds: int = Field(
        30,
        ge=1,
        le=3600,
        description="How long requests in flight may take to end when the service is told to stop. With "
        "`--drain-delay-ms`, less than whoever stops it waits before killing it: Docker 10 s, Kubernetes 30 s.",
    )
    tuning_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Longest time spent measuring what batches of a model cost, if that is not known yet. 1 is enough "
        "to try things out; batches are then formed by rougher estimates.",
    )
    tuning_cache: str = Field(
        "~/.cache/attnserve",
        description="Folder in which measured costs are remembered, by model shape, machine and threads, so that the "
        "next start is faster; empty is none. A volume where containers come and go.",
        json_schema_extra={"accepts": "path"},
    )
    tuning: Annotated[
        dict[str, Cost], NoDecode, PlainValidator(parse_costs), WithJsonSchema({"accepts": "costs by model"})
    ] = Field(
        {},
        description="Costs by model, as JSON, instead of measured ones: "
        "`tuning.cost` of `GET /v1/models/{model}` on a machine like this one.",
    )
    checkpoints: str = Field(
        "",
        description="Folder of uploaded checkpoints, shared by all services and workers of a repository; empty is "
        "`.attnserve/checkpoints` in the repository. A folder of its own, on a disk that is written to.",
        json_schema_extra={"accepts": "path"},
    )
    max_checkpoint_bytes: int = Field(
        16 * GIB,
        ge=KIB,
        description="Largest `model.safetensors` that may be uploaded; beyond it 413.",
    )
    checkpoint_paths: Annotated[
        tuple[str, ...],
        NoDecode,
        PlainValidator(parse_folders),
        WithJsonSchema({"accepts": f"absolute paths, separated by `{os.pathsep}`; in a file, a list"}),
    ] = Field(
        (),
        description="Folders on this machine that exports may read checkpoints from, besides those that were uploaded. "
        "Links are followed within them, never out of them.",
    )
    database_url: Annotated[str, AfterValidator(check_database)] = Field(
        "",
        description="Database of the export jobs, which all replicas and workers share: "
        "`postgresql://USER:PASSWORD@HOST/DATABASE`, or `sqlite:///PATH` on one machine. Empty is a file in the "
        "repository, `.attnserve/jobs.sqlite`.",
        json_schema_extra={"accepts": "URL"},
    )
    database_password_file: str = Field(
        "",
        description="File that holds the password for `--database-url`, which then names a user and no password: a "
        "secret that is mounted is in no variable.",
        json_schema_extra={"accepts": "path"},
    )
    export_worker: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether a process beside the service takes export jobs (`attnserve worker`, at low priority; it "
        "ends with the service). `auto` is yes where the extra `export` is installed, the repository can be written, "
        "and `--database-url` is not given: who gives one runs workers elsewhere.",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_check_collector)] = Field(
        "",
        description="Collector that OpenTelemetry traces are sent to, as OTLP over HTTP, such as "
        "`http://collector:4318`; needs the extra `tracing`. Empty is no traces.",
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Part of the traces recorded, of those that begin here; of a trace that began elsewhere its caller "
        "says whether it is recorded (header traceparent).",
    )
    sample_heads: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Part of the predictions of which one sequence is run once more, while nobody waits for an answer, "
        "to add the entropy, sink and collapse of its heads to the metrics; 0 is none.",
    )
    sample_heads_length: int = Field(
        512,
        ge=2,
        description="Longest sequence, in steps, that is measured so. A request that comes meanwhile ends it, but not "
        "in the middle of a layer's attention, which takes the square of the length.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people, or a JSON object per line for whatever collects logs."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least severe log line written. `info` has one per request, without its content; `warning` is "
        "quiet until something is wrong.",
    )
