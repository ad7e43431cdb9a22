"""The table of last runs in docs/soak.md: filled by `--record`, one row per scenario, never by hand."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import attnserve
from soak.verdict import Report, show

BEGIN, END = "<!-- last run -->\n", "<!-- /last run -->"
HEAD = ("| scenario | verdict | found | when, with what |", "| --- | --- | --- | --- |")


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """When and with what a scenario was run."""

    day: str
    scale: float
    versions: str
    machine: str

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else f", a trial at scale {self.scale:g}"
        return f"{self.day}{scale}; {self.versions}; {self.machine}"


def look_around(scale: float) -> Circumstances:
    """Those of this moment."""
    versions = {
        "attnserve": f"{attnserve.__version__} ({_find_commit()})",
        "onnxruntime": _find_version("onnxruntime-gpu", "onnxruntime"),
        "uvicorn": _find_version("uvicorn"),
        "Python": platform.python_version(),
    }
    return Circumstances(
        day=datetime.datetime.now(datetime.UTC).date().isoformat(),
        scale=scale,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        machine=f"{len(os.sched_getaffinity(0))} cores, {_find_processor()}",
    )


def record(page: Path, reports: Mapping[str, Report], circumstances: Circumstances, order: Iterable[str]) -> None:
    """Put the rows of these scenarios into the page; those of others stay.

    Raises:
        ValueError: the page has no place for them.
    """
    page.write_text(replace_rows(page.read_text("utf-8"), reports, circumstances, order), "utf-8")


def replace_rows(text: str, reports: Mapping[str, Report], circumstances: Circumstances, order: Iterable[str]) -> str:
    """The page with new rows.

    Raises:
        ValueError: as above.
    """
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"--record: expected a page with {BEGIN.strip()} and {END}, got one without")
    rows = {line.split("|")[1].strip().strip("`"): line for line in table.splitlines()[len(HEAD) :]}
    rows |= {name: format_row(name, report, circumstances) for name, report in reports.items()}
    return "".join(
        [before, begin, *(f"{line}\n" for line in (*HEAD, *(rows[name] for name in order if name in rows))), end, after]
    )


def format_row(name: str, report: Report, circumstances: Circumstances) -> str:
    """One scenario in one line."""
    figures = "; ".join(f"{label}: {show(value)}" for label, value in report.figures.items())
    verdict = "passed" if not report.broken else f"**failed**: {'; '.join(report.broken)[:300]}"
    cells = (f"`{name}`", verdict, figures, str(circumstances))
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _find_commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "no commit"


def _find_version(*names: str) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _find_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
