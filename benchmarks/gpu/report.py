"""The report: what was found, when and with what, as Markdown; and the section of a page that it is recorded in."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Finding, Outcome

BEGIN, END = "<!-- proofs -->\n", "<!-- /proofs -->"
ON_CPU = "**On the CPU: a trial of these programs, which says nothing of a GPU.**"
SHOWN_PACKAGES = ("numpy", "torch", "fastapi", "uvicorn")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """When and with what a part was run."""

    day: str
    commit: str
    versions: str
    machine: str

    def __str__(self) -> str:
        return f"{self.day}; {self.commit}; {self.versions}; {self.machine}"


def read_circumstances(checkup: Mapping[str, Any], device: str, day: str, commit: str) -> Circumstances:
    """From what `attnserve doctor --json` says."""
    machine, runtime, driver = checkup["machine"], checkup["onnxruntime"], checkup["driver"]
    versions = {"attnserve": checkup["attnserve"], "onnxruntime": runtime["version"]}
    versions |= {name: checkup["packages"][name] for name in SHOWN_PACKAGES if name in checkup["packages"]}
    versions["Python"] = machine["python"]
    where = f"{machine['num_cores']} of {machine['num_machine_cores']} cores, {machine['processor']}"
    if device == "cuda":
        gpus = ", ".join(
            f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.0f} GiB, compute capability {gpu['capability']}"
            for gpu in driver["gpus"]
        )
        built = f"ONNX Runtime built for CUDA {runtime['cuda']}"
        where = f"{gpus}; driver {driver['version']}, up to CUDA {driver['cuda']}; {built}; {where}"
    return Circumstances(
        day=day,
        commit=commit,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        machine=where,
    )


def explain_unusable(checkup: Mapping[str, Any], device: str) -> str | None:
    """Why nothing can be shown on a device, by the same; None if it can."""
    reason: str | None = checkup["unusable"][device]
    faults = [fault for fault in checkup["faults"] if fault.startswith(f"device {device}: ")]
    return reason if reason is None or not faults else faults[0].removeprefix(f"device {device}: ")


def format_part(name: str, law: str, outcome: Outcome, device: str, circumstances: Circumstances) -> str:
    """A part as a section of Markdown."""
    lines = [f"### `{name}`: {outcome.verdict}", "", law, ""]
    lines += [ON_CPU, ""] if device == "cpu" else []
    lines += format_table(outcome.findings)
    if outcome.cut is not None:
        lines += ["", f"**Not whole: {outcome.cut}.**"]
    lines += ["", f"{outcome.seconds:.0f} s; {circumstances}", ""]
    return "\n".join(lines)


def format_table(findings: Iterable[Finding]) -> list[str]:
    """Rows with all columns that any of them has, and the verdict last."""
    findings = list(findings)
    columns = list(dict.fromkeys(column for finding in findings for column in finding.cells))
    if not findings:
        return []
    rows = [[finding.cells.get(column, "") for column in columns] + [finding.verdict] for finding in findings]
    return [_row([*columns, "verdict"]), _row(["---"] * (len(columns) + 1)), *map(_row, rows)]


def record(page: Path, sections: Mapping[str, str], order: Iterable[str]) -> None:
    """Put the sections of these parts into the page; those of others stay.

    Raises:
        ValueError: the page has no place for them.
    """
    page.write_text(replace_sections(page.read_text("utf-8"), sections, order), "utf-8")


def check_page(page: Path) -> None:
    """Say it before there is anything to record.

    Raises:
        ValueError: as above.
    """
    try:
        replace_sections(page.read_text("utf-8"), {}, ())
    except OSError as error:
        raise ValueError(f"--record: expected a page, got {page}: {error.strerror}") from None


def replace_sections(text: str, sections: Mapping[str, str], order: Iterable[str]) -> str:
    """The page with new sections.

    Raises:
        ValueError: as above.
    """
    before, begin, rest = text.partition(BEGIN)
    held, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"--record: expected a page with {BEGIN.strip()} and {END}, got one without")
    if not sections:
        return text
    kept = {name: part for part in re.split(r"^(?=### `)", held, flags=re.MULTILINE) if (name := _name_of(part))}
    kept |= sections
    body = "".join(f"{kept[name].rstrip()}\n\n" for name in order if name in kept)
    return "".join([before, begin, "\n", body, end, after])


def _name_of(section: str) -> str | None:
    found = re.match(r"### `([^`]+)`", section)
    return None if found is None else found[1]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"
