"""Settings of the service: one declaration gives default, bounds, help, environment variable, flag and docs page."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from attnserve.service.keys import Key, parse_keys

ENV_PREFIX = "ATTNSERVE_"
KIB, MIB = 1024, 1024 * 1024


def _parse_keys(given: object) -> tuple[Key, ...]:
    # An empty variable, as compose files pass on, is none.
    return () if given in ("", (), []) else parse_keys(given)


class Settings(BaseSettings):
    """Every setting, by flag (`--max-queue`), environment variable (`ATTNSERVE_MAX_QUEUE`) or file (`max_queue:`).

    The flag wins over the variable, the variable over the file, the file over the default (`configuration.py`).
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    # An empty host would mean every interface there is.
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. `127.0.0.1` is this machine alone. Others, such as `0.0.0.0` for every "
        "network it is in, need keys or `--allow-anonymous`: whoever reaches the port could ask.",
    )
    port: int = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 lets the system choose, and the log says which."
    )
    keys_file: str = Field(
        "",
        description="File of API keys, as `attnserve key --file` writes it. It is read again when it changes. A secret "
        "mounted read-only is best.",
        json_schema_extra={"accepts": "path"},
    )
    keys: Annotated[
        tuple[Key, ...], NoDecode, PlainValidator(_parse_keys), WithJsonSchema({"accepts": "entries of a keys file"})
    ] = Field(
        (),
        description="API keys without a file, in YAML or JSON: hashes, not the keys themselves. For platforms that "
        "pass secrets in variables; a change needs a restart.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Whether to listen to other machines without keys. Only where something else decides who may ask: "
        "a gateway on a private network. Where there are keys it changes nothing.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where models run. `auto` takes CUDA if a CUDA session can really be made; "
        "`cuda` refuses to start otherwise.",
    )
    num_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Compute threads per model; 0 is the number of cores this process may use, which is right for one "
        "busy model. Share the cores among several: more threads than cores wait for each other.",
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
        description="Sequences waiting per model; more are answered 429 with Retry-After. Choose what is answered "
        "within the time that clients wait: a longer queue only makes everybody late.",
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
        description="Longest time per model spent at start-up measuring what a batch costs. 1 is enough to try things "
        "out; batches are then formed by rougher estimates.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people, or a JSON object per line for whatever collects logs."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least severe log line written. `info` has one per request, without its content; `warning` is "
        "quiet until something is wrong.",
    )
