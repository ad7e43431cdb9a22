"""Settings of the service: one declaration gives default, bounds, help, environment variable, flag and docs page."""

import argparse
import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from attnserve.service.cost import Cost

ENV_PREFIX = "ATTNSERVE_"
KIB, MIB = 1024, 1024 * 1024


class Settings(BaseSettings):
    """Every setting, by flag (`--max-queue`) or environment variable (`ATTNSERVE_MAX_QUEUE`); the flag wins."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    # An empty host would mean every interface there is.
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where models run. `auto` takes CUDA if a CUDA session can really be made; "
        "`cuda` refuses to start otherwise.",
    )
    num_threads: int = Field(
        0, ge=0, le=1024, description="Compute threads per model; 0 is the number of cores this process may use."
    )
    engines: int = Field(
        1,
        ge=1,
        le=64,
        description="Batches of a model that run at once, each on its share of the threads, all with the same weights. "
        "More than 1 pays where models are so small that a batch keeps no more than one core busy; then one per core.",
    )
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
        4096, ge=1, description="Sequences waiting per model; more are answered 429 with Retry-After."
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
        description="Estimated time a batch of several sequences may take: what those behind it wait. Longer ones gain "
        "nothing, and need more memory.",
    )
    max_batch_bytes: int = Field(
        0,
        ge=0,
        description="Memory one batch may need by estimate; 0 is half of what this process may use. "
        "A sequence that needs more is answered 413 with the longest length that fits.",
    )
    max_pending_bytes: int = Field(
        0,
        ge=0,
        description="Memory that requests in flight may take outside of batches: bodies until they are parsed, and "
        "logits, queries and keys until they are answered; 0 is a quarter of what this process may use. A request that "
        "needs more is answered 413, one that finds too little left 429.",
    )
    max_body_bytes: int = Field(
        16 * MIB, ge=KIB, description="Largest request body, enforced while it is read; beyond it 413."
    )
    max_response_bytes: int = Field(
        64 * MIB, ge=KIB, description="Largest binary answer; beyond it 413 before any work starts."
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
        30, ge=1, le=3600, description="How long requests in flight may take to end when the service is told to stop."
    )
    tuning_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Longest time spent measuring what batches of a model cost, if that is not known yet.",
    )
    tuning_cache: str = Field(
        "~/.cache/attnserve",
        description="Folder in which measured costs are remembered, by model shape, machine and threads, so that the "
        "next start is faster; empty is none.",
    )
    # Decoded below: pydantic does it for the environment alone, and ends the process over text that is no JSON.
    tuning: Annotated[dict[str, Cost], NoDecode] = Field(
        {},
        description="Costs by model, as JSON, instead of measured ones: "
        "`tuning.cost` of `GET /v1/models/{model}` on a machine like this one.",
    )
    otlp_endpoint: str = Field(
        "",
        # Credentials belong into a header: what stands here is in the log.
        pattern=r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$",
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
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people, or a JSON object per line for machines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line written; `info` has one per request, without its content."
    )

    @field_validator("tuning", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise ValueError("expected costs by model as JSON") from None

    @field_validator("tuning")
    @classmethod
    def _check(cls, costs: dict[str, Cost]) -> dict[str, Cost]:
        for name, cost in costs.items():
            for field, value in vars(cost).items():
                if not 0 <= value < math.inf:
                    raise ValueError(f"{name}.{field}: expected a number >= 0")
        return costs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag per setting; one that is not given leaves the environment variable or the default in force."""
    for name, field in Settings.model_fields.items():
        parser.add_argument(
            flag_of(name),
            default=argparse.SUPPRESS,
            metavar=name.upper(),
            help=f"{field.description} (default: {field.default})".replace("%", "%%"),
        )


def read_settings(parsed: argparse.Namespace | None = None) -> Settings:
    """Settings from flags, then environment, then defaults.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """
    given: dict[str, Any] = {} if parsed is None else vars(parsed)
    flags = {name: given[name] for name in Settings.model_fields if name in given}
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).removeprefix(ENV_PREFIX.lower())
        where = ": ".join([f"{flag_of(name)} ({ENV_PREFIX}{name.upper()})", *map(str, first["loc"][1:])])
        raise ValueError(f"{where}: {first['msg'].lower()}, got {first['input']!r}") from None


def flag_of(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def settings_table() -> str:
    """The settings as a markdown table, for docs/settings.md."""
    properties = Settings.model_json_schema()["properties"]
    lines = ["| flag | environment | default | accepts | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        cells = (
            f"`{flag_of(name)}`",
            f"`{ENV_PREFIX}{name.upper()}`",
            f"`{field.default}`",
            _describe_bounds(properties[name]),
            field.description,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _describe_bounds(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
    bounds = [f"{words[key]} {schema[key]}" for key in words if key in schema]
    return " ".join([str(schema["type"]), *bounds])
