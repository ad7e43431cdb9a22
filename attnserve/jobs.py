"""Export jobs: what a service asks of a worker, and what the worker says of it. Standard library only.

Both import this and neither imports the other. They meet in a durable queue (DBOS, in SQLite or PostgreSQL), whose
names are here; records travel through it as JSON.
"""

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from attnserve.bundle import is_model_name, is_version
from attnserve.certificate import PRECISIONS, Deviation
from attnserve.interface import check_choice
from attnserve.records import check_types

JOB_FORMAT = 1
"""Of all records here, which outlive their release in the queue, and the queue's application version: a worker takes
orders of its own format, finishes or refuses by name those that an older release has left, and leaves newer ones to
newer workers."""

APPLICATION, QUEUE, WORKFLOW = "attnserve", "exports", "export"
PROGRESS, LOG = "progress", "log"
"""Key of the event that holds the last `Progress`, and of the stream that holds them all, as JSON objects."""

STATE_FOLDER = ".attnserve"
"""Of a repository, for which names that begin with a dot are no models: the queue's database and the uploads."""

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
STEPS = {
    "fetch": 0.0,
    "load": 0.02,
    "graph": 0.05,
    "golden": 0.45,
    "verify": 0.75,
    "publish": 0.97,
    "activate": 0.99,
}
"""Steps of a job in their order, and the part of it that is done when each begins: of a small model, measured."""


@dataclass(frozen=True, kw_only=True)
class ExportOrder:
    """What is to be exported, from exactly which files, and to where."""

    format: int = JOB_FORMAT
    checkpoint: str
    """Name of an uploaded checkpoint, or the absolute path of a folder that the worker can read too."""
    files: dict[str, str]
    """sha256 of every file, by name, as they were when the export was asked for: it is of these or of none."""
    model: str
    version: int
    precision: str = "float32"
    portable: bool = False
    top_k: int | None = None
    """Likeliest entries that the graph chooses itself. How many there can be, only the checkpoint says."""
    activate: bool = True
    """Whether it becomes the model's active version once it is published."""

    def __post_init__(self) -> None:
        """Refuse what no export could be.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_types(self)
        check_choice("precision", self.precision, PRECISIONS)
        if not is_model_name(self.model):
            raise ValueError(
                f"model: expected letters, digits, '.', '_' and '-', a letter or digit first, got {self.model[:40]!r}"
            )
        if not is_version(str(self.version)):
            raise ValueError(f"version: expected an integer from 1 to 999999999, got {self.version}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected an integer of at least 1, got {self.top_k}")

    @property
    def is_path(self) -> bool:
        """Whether the checkpoint is a folder, not an upload."""
        return self.checkpoint.startswith("/")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a job is. A job that was taken over by another worker goes on at an earlier step."""

    step: str
    """One of `STEPS`."""
    fraction: float
    """Of the whole job, from 0 to 1, by estimate."""
    message: str
    at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the exported bundle is from PyTorch float64, as largest absolute differences, and how far it may be."""

    logits: Deviation
    maps: Deviation
    reference_logits: float
    """Of onnx's ReferenceEvaluator."""
    table: str
    """For people: by length."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended that was not cancelled: what its workflow returns."""

    state: str
    """"succeeded" or "failed"."""
    parity: Parity | None = None
    """Of a job that came to the end of `verify`."""
    step: str | None = None
    """Where it failed."""
    reason: str | None = None
    """Why it failed: what was expected and what came."""
    report: str | None = None
    """What a failed verification measured."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the process that builds a bundle says last."""

    outcome: Outcome
    """Succeeded if the bundle is whole and proven, in the folder it was asked for."""
    manifest_sha256: str | None = None
    """Of the bundle's manifest, which holds the hashes of all other files."""
    checkpoint_sha256: dict[str, str] | None = None
    """Of the files that were read, by name."""


def check_database(url: str) -> str:
    """The URL of a database, or nothing.

    Raises:
        ValueError: it is neither SQLite's nor PostgreSQL's; the message does not show it, for a password may be in it.
    """
    if not re.fullmatch(r"|sqlite:///[^?#]+|postgres(ql)?://([^\s/?#@]+@)?[^\s/?#@]*/[^\s/?#]+(\?\S+)?", url):
        expected = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
        raise ValueError(f"expected {expected}, special characters as %XX, got something else")
    return url


def hide_password(url: str) -> str:
    """The URL of a database as a log may show it: without who connects, and without parameters."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    return scheme + separator + rest.rpartition("@")[2] if scheme.startswith("postgres") else url


def locate_database(repository: str | os.PathLike[str], url: str = "", password_file: str = "") -> str:
    """URL of the queue's database: the one given, else of a file in the repository.

    Args:
        repository: of bundles.
        url: of the settings; empty if there is none.
        password_file: holds the password of whom `url` names; empty if there is none.

    Raises:
        ValueError: the file cannot be read, or `url` has no place for a password; no password is shown.
    """
    if password_file:
        return _add_password(url, Path(password_file))
    return url or f"sqlite:///{urllib.parse.quote(str(Path(repository).absolute() / STATE_FOLDER / 'jobs.sqlite'))}"


def _add_password(url: str, file: Path) -> str:
    scheme, _, rest = url.partition("://")
    user, separator, place = rest.partition("@")
    if not scheme.startswith("postgres") or not separator or ":" in user:
        expected = "database_url to be postgresql://USER@HOST/DATABASE, without a password"
        raise ValueError(f"database_password_file: expected {expected}, got another")
    try:
        password = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(f"database_password_file: expected a file, got {file}: {reason}") from None
    return f"{scheme}://{user}:{urllib.parse.quote(password, safe='')}@{place}"


def locate_checkpoints(repository: str | os.PathLike[str], folder: str = "") -> Path:
    """Where uploaded checkpoints are: the folder given, else one in the repository."""
    return Path(folder) if folder else Path(repository) / STATE_FOLDER / "checkpoints"
