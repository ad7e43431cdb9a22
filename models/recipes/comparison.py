"""`--quick`: the variants side by side, with the same options and seeds, as a table on the terminal."""

import argparse
import shlex
from typing import Any

from attnserve.models.recipes.log import write_number
from attnserve.models.recipes.recipe import Recipe
from attnserve.models.recipes.summary import Measure, cell_of, markdown_table, summarise


def compare(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Train every row of `recipe.COMPARED` with each seed, and print what was measured; returns the exit code."""
    if arguments.replicas < 1:
        raise ValueError(f"replicas: expected an integer >= 1, got {arguments.replicas}")
    if arguments.out is not None or arguments.log is not None:
        raise ValueError("quick: a comparison is printed and leaves no files; expected neither --out nor --log")
    rows = []
    for name, options in recipe.COMPARED.items():
        measured = [
            recipe.measure(arguments_of(recipe, arguments, f"{options} --seed {arguments.seed + replica}"))
            for replica in range(arguments.replicas)
        ]
        rows.append([name, *(_summary(measure, measured) for measure in recipe.MEASURES)])
    print(f"seeds {', '.join(str(arguments.seed + replica) for replica in range(arguments.replicas))}")
    print(markdown_table([recipe.TASK, *(measure.header for measure in recipe.MEASURES)], rows), end="")
    print(recipe.LESSON)
    return 0


def _summary(measure: Measure, measured: list[dict[str, Any]]) -> str:
    rows = [{column: write_number(value) for column, value in row.items()} for row in measured]
    return summarise(measure, [cell_of(measure, row) for row in rows])


def arguments_of(recipe: Recipe, arguments: argparse.Namespace, options: str) -> argparse.Namespace:
    """The options of a comparison, with those of one run of it; what nobody chose is that of a quick run."""
    chosen = argparse.Namespace(**vars(arguments))
    for option, value in recipe.QUICK.items():
        # None or 0, if it was left out.
        setattr(chosen, option, getattr(chosen, option) or value)
    parser = argparse.ArgumentParser()
    recipe.add_arguments(parser)
    return parser.parse_args(shlex.split(options), chosen)
