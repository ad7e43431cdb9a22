"""Representation collapse in a table and in a figure: how alike steps are after each layer of models with three."""

from collections.abc import Mapping

from attnserve.models.recipes.collapse import name_similarity
from attnserve.models.recipes.summary import Measure
from attnserve.models.studies.study import Cell

LAYERS = (1, 2, 3)
MEASURES = tuple(Measure(header=f"layer {layer}", column=name_similarity(layer), kind="number") for layer in LAYERS)


def groups_of(rows: Mapping[str, str]) -> dict[str, dict[str, Cell]]:
    """Points of a figure: those of each row, layer by layer.

    Args:
        rows: of the table; what each is called, and its options.
    """
    return {
        f"layer {layer}": {name: Cell(options=options, column=name_similarity(layer)) for name, options in rows.items()}
        for layer in LAYERS
    }
