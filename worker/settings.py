"""Settings of the worker, each declared once (`attnserve.flags`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from attnserve.flags import ENV_PREFIX
from attnserve.jobs import check_database

# What is said of their values is chosen by whoever reads them: a database URL may hold a password.
SECRET = frozenset({"database_url"})


class WorkerSettings(BaseSettings):
    """Every setting of `attnserve worker`, by flag (`--name`) or environment variable (`ATTNSERVE_NAME`)."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: Annotated[str, AfterValidator(check_database)] = Field(
        "",
        description="Database that holds the jobs, the same as that of the services: `sqlite:///` and an absolute "
        "path, or `postgresql://USER:PASSWORD@HOST/DATABASE` for workers on several hosts. Empty is "
        "`.attnserve/jobs.sqlite` in the repository. With a password in it, better a variable than a flag, which "
        "everybody may read.",
        json_schema_extra={"accepts": "database URL"},
    )
    database_password_file: str = Field(
        "",
        description="File that holds the password for `--database-url`, which then names a user and no password: a "
        "secret that is mounted is in no variable.",
        json_schema_extra={"accepts": "path"},
    )
    checkpoints: str = Field(
        "",
        description="Folder of uploaded checkpoints, the one of the services. Jobs work in it too: it needs as much "
        "room as the checkpoints that are exported at once. Empty is `.attnserve/checkpoints` in the repository.",
        json_schema_extra={"accepts": "path"},
    )
    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="Name of this worker, the same at every start and no other worker's: one that comes back goes on "
        "with its jobs at once. Empty is the name of the host, numbered from the second worker of a host on.",
    )
    alive_file: str = Field(
        "",
        description="File that is touched every five seconds, as long as the worker and its database answer each "
        "other: one older than 30 seconds is a reason to look, which the image of the worker does "
        "(`HEALTHCHECK`). Empty is none.",
        json_schema_extra={"accepts": "path"},
    )
    max_export_seconds: int = Field(
        3600,
        ge=1,
        le=7 * 24 * 3600,
        description="How long building and proving one bundle may take; then the job fails and says in which step.",
    )
    max_export_bytes: int = Field(
        0,
        ge=0,
        description="Memory that building and proving one bundle may take; 0 is three quarters of what this process "
        "may use. A job that takes more fails and says so, instead of taking the machine along. On Linux only.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people, or a JSON object per line for whatever collects logs."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least severe log line written. `info` has one per step of a job; `warning` is quiet until "
        "something is wrong.",
    )
