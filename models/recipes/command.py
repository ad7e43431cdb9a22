"""`attnserve train`: the recipes, and what each can be asked for: a checkpoint, a row of a log, a comparison."""

import argparse

from attnserve.models.recipes import digits, leak, nt, text
from attnserve.models.recipes.comparison import compare
from attnserve.models.recipes.log import Log
from attnserve.models.recipes.recipe import Recipe
from attnserve.models.threads import num_threads

RECIPES: dict[str, Recipe] = {"digits": digits, "leak": leak, "nt": nt, "text": text}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a word per recipe, with its options."""
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    for name, recipe in RECIPES.items():
        recipe.add_arguments(recipes.add_parser(name, help=recipe.SUMMARY, description=recipe.SUMMARY))


def parse(recipe: str, options: list[str]) -> argparse.Namespace:
    """What these options of `attnserve train RECIPE` mean."""
    parser = argparse.ArgumentParser(prog=f"attnserve train {recipe}")
    RECIPES[recipe].add_arguments(parser)
    return parser.parse_args(options, argparse.Namespace(recipe=recipe))


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense, or none says what is wanted; the message names it.
        RuntimeError: training diverged.
    """
    recipe = RECIPES[arguments.recipe]
    if arguments.threads < 1:
        raise ValueError(f"threads: expected an integer >= 1, got {arguments.threads}")
    with num_threads(arguments.threads):
        if arguments.quick:
            return compare(recipe, arguments)
        if arguments.log is not None:
            return add_row(recipe, arguments)
        if arguments.out is None:
            raise ValueError("out: expected a folder for the checkpoint, or --log or --quick, got none")
        return recipe.run(arguments)


def add_row(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Measure a run and add its row to the log, unless it is there; returns the exit code."""
    if arguments.out is not None:
        raise ValueError(f"out: a measured run saves no checkpoint; expected none with --log, got {arguments.out}")
    log, command = Log(arguments.log), recipe.command(arguments)
    if command in log:
        print(f"{arguments.log} has it already: {command}")
        return 0
    row = recipe.measure(arguments)
    log.add(command, arguments.seed, row)
    print(", ".join(f"{column} {value:.6g}" for column, value in row.items() if value is not None))
    return 0
