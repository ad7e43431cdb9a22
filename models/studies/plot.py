"""Figures as SVG, the same bytes wherever the same matplotlib draws the same numbers."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from attnserve.models.studies.study import Cell, Figure

STYLE: dict[str, Any] = {
    # Ids in the file are random otherwise.
    "svg.hashsalt": "attnserve",
    # Text is text, in the reader's font, and can be searched.
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Told apart with any colour vision: Okabe and Ito."""
SPREAD = 0.7
"""Of the width of a place, that its groups share."""


def draw(figure: Figure, values_of: Callable[[Cell], list[float]], path: Path) -> None:
    """Write the figure: a point per seed, a bar at the median of each group."""
    # Whatever the user's own settings are.
    settings: Any = {**matplotlib.rcParamsDefault, **STYLE, "backend": "svg"}
    with matplotlib.rc_context(settings):
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(7.0, 3.2), layout="constrained")
        axes = canvas.subplots()
        places = list(figure.groups)
        names = list(next(iter(figure.groups.values())))
        step = SPREAD / len(names)
        for number, name in enumerate(names):
            colour = COLOURS[number]
            middles = []
            for place, groups in enumerate(figure.groups.values()):
                heights = [figure.factor * value for value in values_of(groups[name])]
                if not heights:
                    continue
                centre = place + step * (number - (len(names) - 1) / 2)
                middles.append((centre, statistics.median(heights)))
                # Side by side: equal results would hide each other.
                shifts = [step * 0.6 * (index / max(1, len(heights) - 1) - 0.5) for index in range(len(heights))]
                axes.plot([centre + shift for shift in shifts], heights, "o", markersize=3, color=colour, alpha=0.6)
                axes.plot(
                    [centre - 0.35 * step, centre + 0.35 * step],
                    [middles[-1][1]] * 2,
                    color=colour,
                    linewidth=2,
                    label=name if len(middles) == 1 else None,
                )
            if figure.is_connected:
                axes.plot(*zip(*middles, strict=True), color=colour, linewidth=0.8)
        if figure.line is not None:
            axes.axhline(figure.line, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(places)), places)
        axes.set_ylabel(figure.vertical)
        axes.set_title(figure.title, fontsize=10)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        # The date of the drawing is nobody's business, and would change the file every time.
        canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
