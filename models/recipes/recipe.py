"""What every recipe has: its options, and what they are good for."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attnserve.models.recipes.summary import Measure


@runtime_checkable
class Recipe(Protocol):
    """A module of this package that trains models on one task."""

    @property
    def SUMMARY(self) -> str:
        """The task, for `--help`."""

    @property
    def TASK(self) -> str:
        """Above the rows of a table."""

    @property
    def COMPARED(self) -> Mapping[str, str]:
        """What `--quick` compares: the name of a row, and its options."""

    @property
    def QUICK(self) -> Mapping[str, Any]:
        """Values of options that `--quick` has others for, unless they are given."""

    @property
    def LESSON(self) -> str:
        """A sentence below that table: how not to misread it."""

    @property
    def MEASURES(self) -> Sequence[Measure]:
        """What its tables show of a run."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of `attnserve train RECIPE`."""

    def command(self, arguments: argparse.Namespace) -> str:
        """The command line that repeats a run."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Train a model, save it with its card; returns the exit code."""

    def measure(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Train a model, and measure the columns of a log: a number, or None where there is none."""
