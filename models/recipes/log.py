"""The log of a study: a CSV file with a row per run, found by its command. Lines are only ever added."""

import csv
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = ("command", "seed")
"""Columns of every log, before those of its recipe."""
TRAINED_WITH = "trained_with"
"""The last column."""
DIGITS = 6
"""Significant ones of a measured number."""


class Log:
    """A CSV file of runs; it need not exist yet.

    Raises:
        ValueError: it is no log; names the line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.columns: list[str] = []
        self.rows: dict[str, dict[str, str]] = {}
        """By command, in the order they were added."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            self.columns = next(lines, [])
            if self.columns[:2] != list(NAMES) or self.columns[-1] != TRAINED_WITH:
                raise ValueError(f"log: {path}: expected the columns {', '.join(NAMES)} first, got {self.columns[:2]}")
            for number, cells in enumerate(lines, 2):
                if len(cells) != len(self.columns):
                    raise ValueError(
                        f"log: {path}, line {number}: expected {len(self.columns)} cells, got {len(cells)}"
                    )
                self.rows[cells[0]] = dict(zip(self.columns, cells, strict=True))

    def __contains__(self, command: str) -> bool:
        return command in self.rows

    def add(self, command: str, seed: int, measured: dict[str, Any]) -> None:
        """Write a run behind the others, in one piece.

        Raises:
            ValueError: the file has other columns.
        """
        columns = [*NAMES, *measured, TRAINED_WITH]
        if self.columns and self.columns != columns:
            raise ValueError(f"log: {self.path}: expected the columns {self.columns}, got {columns}")
        cells = [command, str(seed), *map(write_number, measured.values()), versions_in_short()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self.columns:
                writer.writerow(columns)
            writer.writerow(cells)
        self.columns = columns
        self.rows[command] = dict(zip(columns, cells, strict=True))


def write_number(value: float | int | None) -> str:
    """As it stands in a cell: nothing for None."""
    return "" if value is None else f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def versions_in_short() -> str:
    """Of what decides the numbers, beside this code."""
    return f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
