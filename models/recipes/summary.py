"""Runs of several seeds as a row of a table: the middle and the spread of what was measured."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnserve.interface import check_choice

KINDS = ("outcome", "share", "number", "steps", "seconds")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of a log, as a column of a table."""

    header: str
    column: str
    kind: str
    """How it is summed up and written.

    "outcome", a share that is all or nothing: median (lowest to highest), in percent; a mean of both shows neither.
    "share": mean ± standard deviation, in percent. "number": the same, as it is.
    "steps": median of the seeds that got there (how many did). "seconds": mean.
    """

    minus: str | None = None
    """A column that is subtracted, run by run: what differs between seeds and not between columns is gone."""

    def __post_init__(self) -> None:
        """Refuse a kind that there is not."""
        check_choice("kind", self.kind, KINDS)


def summarise(measure: Measure, cells: Sequence[str]) -> str:
    """The cells of one column, one per seed, in few characters; a dash where nothing was measured."""
    values = [float(cell) for cell in cells if cell]
    if measure.kind == "steps":
        reached = f"{len(values)} of {len(cells)}"
        return f"{statistics.median(values):.0f} ({reached})" if values else f"never ({reached})"
    if not values:
        return "-"
    if measure.kind == "outcome":
        median, lowest, highest = (100 * value for value in (statistics.median(values), min(values), max(values)))
        return f"{median:.1f} ({lowest:.1f} to {highest:.1f})" if len(values) > 1 else f"{median:.1f}"
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    if measure.kind == "seconds":
        return f"{mean:.0f}"
    if measure.kind == "share":
        return f"{100 * mean:.1f} ± {100 * spread:.1f}"
    return f"{mean:.3f} ± {spread:.3f}"


def cell_of(measure: Measure, row: Mapping[str, str]) -> str:
    """The cell of one run; nothing where nothing was measured."""
    if measure.minus is None or not row[measure.column]:
        return row[measure.column]
    return str(float(row[measure.column]) - float(row[measure.minus]))


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well in a terminal too; ends with a newline."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    written.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(written) + "\n"
