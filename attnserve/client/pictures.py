"""Pictures of answers, for notebooks: as the service draws them."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from attnserve.client.attention import Attention

MAPS = ("weights", "signed", "scores", "weighted", "received", "rollout")
PARTS = (
    *("entropy_normalised", "sink", "self", "previous_token", "duplicate_token", "induction"),
    *("special", "negative", "mass"),
)
"""Measures from 0 to 1, which one scale of colours fits."""
MAX_COLUMNS = 16


def draw_attention(attention: "Attention") -> bytes | None:
    """The first sequence of an answer, as PNG; None where there is nothing to draw."""
    if not attention.arrays:
        return None
    return _draw_maps(attention) if attention.quantity in MAPS else _draw_heads(attention)


def _draw_maps(attention: "Attention") -> bytes | None:
    """A panel per head."""
    from attnserve.service.formats.picture import MAX_PANELS, Panel, draw_panels

    axes, array = attention.axes[attention.quantity], attention.arrays[0][attention.quantity]
    if "entry" in axes:
        return None
    leading = array.shape[: sum(axis in ("layer", "head", "pair") for axis in axes)]
    if not array.size or math.prod(leading) > MAX_PANELS:
        return None
    numbers = {"layer": attention.layers, "head": attention.heads}
    panels = []
    for place in np.ndindex(*leading):
        if axes[0] == "pair":
            title = f"{attention.layers[place[0]]}.{attention.heads[place[0]]}"
        else:
            title = ".".join(str(numbers[axis][index]) for axis, index in zip(axes, place, strict=False))
        panels.append(Panel(title=title, values=np.atleast_2d(array[place])))
    num_columns = leading[1] if axes[1:2] == ["head"] else len(panels)
    caption = f"{attention.model} version {attention.version}: {attention.quantity} by layer.head"
    return draw_panels(panels, num_columns=min(num_columns, MAX_COLUMNS), caption=caption)


def _draw_heads(attention: "Attention") -> bytes | None:
    """A panel per measure, with a cell per head."""
    from attnserve.service.formats.picture import Panel, draw_panels

    axes, arrays = attention.axes, attention.arrays[0]
    of_heads = [name for name in arrays if axes.get(name) == ["layer", "head"]]
    # Others, as distances, each have a scale of their own.
    chosen = [name for name in PARTS if name in of_heads] or of_heads[:1]
    if not chosen or not arrays[chosen[0]].size:
        return None
    panels = [Panel(title=name, values=np.nan_to_num(arrays[name])) for name in chosen]
    caption = f"{attention.model} version {attention.version}"
    return draw_panels(panels, num_columns=min(len(panels), 4), caption=caption, axes=("layers", "heads"))
