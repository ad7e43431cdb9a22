"""Publishing: a checkpoint goes to a service, which exports it and answers with it; and how far that is."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attnserve.following import describe_end, follow_events, start_export, wait_until_served
from attnserve.progress import Report, Watch, show_bytes, show_lines
from attnserve.push import Pushed, push
from attnserve.remote import Remote


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far something is."""

    step: str
    """Of the work: `hash`, `push`, or a step of an export."""
    message: str
    fraction: float
    """Of the step when pushing, of the whole export when exporting."""


Tell = Callable[[Progress], object]


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that has succeeded."""

    id: str
    model: str
    version: int
    table: str = field(repr=False)
    """How far the bundle is from PyTorch, and how far it may be."""
    job: Mapping[str, Any] = field(repr=False)
    """All that the service says of it."""


class ExportError(RuntimeError):
    """An export did not succeed, or nobody answers with what it made.

    Args:
        message: for people.
        job: all that the service says of it.
    """

    def __init__(self, message: str, job: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.job = job


def push_folder(folder: Path, name: str, remote: Remote, tell: Tell | None) -> Pushed:
    """Make an uploaded checkpoint equal to a folder; progress goes to `tell`, or to a bar where somebody looks."""
    watch = partial(show_bytes, is_shown=_is_watched()) if tell is None else _watch_with(tell)
    return push(folder, name, remote, watch=watch)


def run_export(
    remote: Remote,
    checkpoint: str,
    model: str,
    version: int | None,
    *,
    precision: str,
    portable: bool,
    top_k: int | None,
    activate: bool,
    tell: Tell | None,
    wait: Callable[[float], object],
) -> Export:
    """Ask for an export, and wait until the model answers with it; arguments as `Client.export`.

    Raises:
        ExportError: it failed or was cancelled, or the service cannot serve what it made.
        RemoteError: the service refuses, or is away for long.
    """
    job = start_export(
        remote,
        checkpoint,
        model,
        version,
        precision=precision,
        portable=portable,
        top_k=top_k,
        activate=activate,
        wait=wait,
    )

    def report(line: Mapping[str, Any]) -> None:
        if tell is not None:
            tell(Progress(step=line["step"], message=line["message"], fraction=line["fraction"]))

    with show_lines(report, is_shown=tell is None and _is_watched()) as show:
        job = follow_events(remote, job["id"], show, wait=wait)
    if job["state"] != "succeeded":
        raise ExportError(describe_end(job), job)
    if activate:
        trouble = wait_until_served(remote, job["model"], job["version"], wait=wait)
        if trouble is not None:
            place = f"{job['model']}/{job['version']}"
            raise ExportError(f"{place} is published, and does not answer: {trouble}", job)
    return Export(id=job["id"], model=job["model"], version=job["version"], table=job["table"], job=job)


def _watch_with(tell: Tell) -> Watch:
    @contextmanager
    def watch(what: str, num_bytes: int) -> Iterator[Report]:
        step, _, name = what.partition(" ")
        num_done = 0

        def report(num: int) -> None:
            nonlocal num_done
            num_done += num
            tell(Progress(step=step, message=name, fraction=num_done / num_bytes))

        yield report

    return watch


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules
