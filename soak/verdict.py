"""What a scenario found, and the laws that several share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of a scenario."""

    figures: Figures
    """What was measured, by name, in the order shown."""
    broken: Sequence[str]
    """Laws that were broken, in words; none is a pass."""


def percent_change(before: float, after: float) -> float:
    """How much more `after` is than `before`, in percent; less is negative.

    Raises:
        ValueError: there is nothing to compare with.
    """
    if not before > 0:
        raise ValueError(f"before: expected a number > 0, got {before:g}")
    return 100 * (after - before) / before


def check_growth(what: str, before: float, after: float, *, most_percent: float, scale: float) -> list[str]:
    """The law that something does not grow. Shrinking breaks nothing.

    A trial, of a scale below 1, ends while buffers and allocators still fill up, so it breaks nothing either.
    """
    grown = percent_change(before, after)
    is_broken = scale >= 1 and grown > most_percent
    return [f"{what} grew by {grown:.1f} %, at most {most_percent:g} % may be"] if is_broken else []


def check_zero(what: str, number: int, example: str = "") -> list[str]:
    """The law that there is none of something."""
    return [f"{number} {what}{f', such as: {example}' if example else ''}"] if number else []


def format_report(name: str, report: Report) -> str:
    """A report for people."""
    lines = [f"{'PASSED' if not report.broken else 'FAILED'} {name}"]
    lines += [f"  {label}: {show(value)}" for label, value in report.figures.items()]
    lines += [f"  !! {law}" for law in report.broken]
    return "\n".join(lines)


def show(value: str | int | float) -> str:
    """A figure with as many digits as mean something."""
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value
