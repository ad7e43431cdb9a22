"""The page of results: tables and figures of every study from its log, and nothing that is not in a log."""

from pathlib import Path

from attnserve.models.recipes.log import Log
from attnserve.models.recipes.summary import cell_of, markdown_table, summarise
from attnserve.models.studies.plot import draw
from attnserve.models.studies.runs import log_of, rows_of
from attnserve.models.studies.study import Cell, Study, Table
from attnserve.models.studies.table import STUDIES

INTRODUCTION = """# Results

<!-- Written by `attnserve study page` from the logs in results/; a test compares. -->

What the attention of this project learns, on tasks that a laptop can repeat. A row of a table is five runs of
`attnserve train`, one per seed. The log below has a line for each: its command, its seed, what was measured, and the
versions it was trained with. The command, given `--log FILE`, trains and measures the run again. On another machine or
with another PyTorch the last digits differ, and where a seed decides between learning and not learning, so may that.

An accuracy that is all or nothing stands as median (lowest to highest) of the seeds; other numbers as mean ± standard
deviation. Differences within the spread are none.

The body of the paper on expressive attention could not be read here, so there is no column of its numbers, and its
set-up is not claimed. Those of the paper on elliptical attention are of models a thousand times larger.
"""

ENDING = """
## Not measured

Of NT other gains, other numbers of layers and heads, and several delays with SGD: options that no table here shows
yet. `attnserve train nt --quick` compares with them, on seeds of your own.

## Again

```bash
attnserve study run nt      # trains what results/nt.csv lacks; nothing, in a fresh checkout
attnserve study page        # this page and its figures, from the logs
attnserve train nt --quick  # the first comparison on seeds of your own: a minute of one core
```

[training.md](training.md) has the options, and these attentions in other loops; [zoo.md](zoo.md) has the models
that come with the project.
"""


def write_page(page: Path, figures: Path, logs: Path) -> None:
    """Write the page and its figures.

    Raises:
        ValueError: a log lacks a run that the page shows; names its command.
    """
    parts = [INTRODUCTION]
    for study in STUDIES.values():
        log = log_of(study, logs)
        parts.append(f"\n## {study.title}\n\n{study.setup}\n")
        for table in study.tables:
            parts.append(f"\n### {table.title}\n\n{render_table(study, log, table)}\n{table.shows}\n")
        for figure in study.figures:
            path = figures / f"{figure.name}.svg"
            draw(figure, lambda cell, study=study, log=log: values_of(study, log, cell), path)  # type: ignore[misc]
            parts.append(f"\n![{figure.title}]({path.relative_to(page.parent).as_posix()})\n")
        parts.append(f"\nLog: [results/{study.name}.csv](../results/{study.name}.csv).\n")
    parts.append(ENDING)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("".join(parts), "utf-8")


def render_table(study: Study, log: Log, table: Table) -> str:
    """The rows of a table, each summed up over the seeds."""
    lines = []
    for name, options in table.rows.items():
        runs = rows_of(study, log, options)
        cells = [summarise(measure, [cell_of(measure, run) for run in runs]) for measure in table.measures]
        lines.append([name, *cells])
    return markdown_table(["", *(measure.header for measure in table.measures)], lines)


def values_of(study: Study, log: Log, cell: Cell) -> list[float]:
    """What was measured, of the seeds for which something was."""
    return [float(run[cell.column]) for run in rows_of(study, log, cell.options) if run[cell.column]]
