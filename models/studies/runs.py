"""The runs of a study: which are missing in its log, and what those that are there have measured."""

import argparse
import shlex
from functools import cache
from pathlib import Path

from tqdm import tqdm

from attnserve.models.recipes.command import RECIPES, parse
from attnserve.models.recipes.log import Log
from attnserve.models.studies.study import Study, with_seed
from attnserve.models.threads import num_threads


def log_of(study: Study, folder: Path) -> Log:
    """The log of a study, in the folder of the logs."""
    return Log(folder / f"{study.name}.csv")


@cache
def command_of(recipe: str, run: str) -> str:
    """The command of a run, by which a log knows it; remembered, since every cell of a table asks for it."""
    return RECIPES[recipe].command(parse(recipe, shlex.split(run)))


def arguments_of(study: Study, run: str) -> argparse.Namespace:
    """The options of a run of a study as its recipe understands them."""
    return parse(study.recipe, [*shlex.split(run), "--quiet"])


def run_missing(study: Study, folder: Path) -> int:
    """Train and measure every run that the log lacks, in order, and add it; returns how many those were.

    It may be stopped at any time: runs that are done are in the log, and the next call does the others.
    """
    recipe, log = RECIPES[study.recipe], log_of(study, folder)
    runs = [arguments_of(study, run) for run in study.runs()]
    missing = [run for run in runs if recipe.command(run) not in log]
    for run in tqdm(missing, desc=study.name, unit="run"):
        with num_threads(run.threads):
            log.add(recipe.command(run), run.seed, recipe.measure(run))
    return len(missing)


def rows_of(study: Study, log: Log, options: str) -> list[dict[str, str]]:
    """The runs with these options, one per seed of the study.

    Raises:
        ValueError: the log lacks one.
    """
    commands = [command_of(study.recipe, with_seed(options, seed)) for seed in study.seeds]
    for command in commands:
        if command not in log:
            raise ValueError(f"log: {log.path} lacks a run; `attnserve study run {study.name}` adds it: {command}")
    return [log.rows[command] for command in commands]
