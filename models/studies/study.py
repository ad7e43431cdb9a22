"""A study: tables and figures of models that are compared, each trained with several seeds by one recipe."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attnserve.models.recipes.summary import Measure


@dataclass(frozen=True, kw_only=True)
class Table:
    """Models that are compared, a row each."""

    title: str
    rows: Mapping[str, str]
    """What a row is called, and its options of `attnserve train RECIPE`, without a seed."""
    measures: tuple[Measure, ...]
    shows: str
    """What the numbers show, and what they do not."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a group of points in a figure is: a column of the runs with these options."""

    options: str
    column: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A point per seed, in groups."""

    name: str
    """Of its file, `docs/results/NAME.svg`."""
    title: str
    vertical: str
    """What is measured, and its unit."""
    groups: Mapping[str, Mapping[str, Cell]]
    """By their place on the horizontal axis, then by colour: the same names in the same order everywhere."""
    factor: float = 1.0
    """Of what stands in the log: 100 for percent."""
    line: float | None = None
    """A height to compare with, such as chance."""
    is_connected: bool = False
    """Whether a line runs through the medians of each colour: for places in an order."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that is trained and shown of one task."""

    name: str
    """Of its log, `results/NAME.csv`."""
    recipe: str
    title: str
    setup: str
    """What all its runs have in common, for whoever reads the tables."""
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def runs(self) -> Iterator[str]:
        """Options of every run, table by table and seed by seed, each once."""
        seen = set()
        for table in self.tables:
            for seed in self.seeds:
                for options in table.rows.values():
                    run = with_seed(options, seed)
                    if run not in seen:
                        seen.add(run)
                        yield run


def with_seed(options: str, seed: int) -> str:
    """Options of one run."""
    return f"{options} --seed {seed}"
