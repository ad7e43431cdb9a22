"""Diagnostics: the table of what heads are measured by, and how a layer's weights become measures.

docs/attention-api.md prints this table; the formulas are in `measures.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service import measures
from attnserve.service.extents import About
from attnserve.service.measures import Block, Part
from attnserve.weighing import WeightRows

Array = NDArray[Any]
Measure = Callable[[Block], dict[str, Part]]

# Groups that can be asked for by one word.
CHEAP, ALL = "cheap", "all"


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One row of the table."""

    measures: tuple[str, ...]
    """Names in the answer."""
    definition: str
    """In markdown; what is averaged over the queries asked for, unless it says otherwise."""
    source: str
    add: Measure | None = None
    """Adds up a block of rows; None for what is not made of rows of weights."""
    axis: str = ""
    """What follows the head: "key", "other head", or nothing. "layer" is a measure of layers, without heads."""
    is_cheap: bool = False
    """Whether "cheap" names it."""
    needs_ids: bool = False
    needs_scores: bool = False


DIAGNOSTICS: dict[str, Diagnostic] = {
    "entropy": Diagnostic(
        measures=("entropy_bits", "entropy_normalised"),
        definition=r"$-\sum_j w_{ij} \log_2 w_{ij}$, where $0 \log 0 = 0$; normalised: divided by "
        r"$\log_2 (b_i - a_i + 1)$, over rows that see at least two keys",
        source="Shannon 1948; per head: Clark et al. 2019, arXiv 1906.04341",
        add=measures.entropy,
    ),
    "distance": Diagnostic(
        measures=("distance",),
        definition=r"$\sum_j w_{ij} \, \lvert i - j \rvert$",
        source="Vig and Belinkov 2019, arXiv 1906.04284",
        add=measures.distance,
        is_cheap=True,
    ),
    "sink": Diagnostic(
        measures=("sink",),
        definition="$w_{i0}$",
        source="Xiao et al. 2023, arXiv 2309.17453",
        add=measures.sink,
        is_cheap=True,
    ),
    "self": Diagnostic(
        measures=("self",),
        definition="$w_{ii}$",
        source="Clark et al. 2019, arXiv 1906.04341",
        add=measures.self_weight,
        is_cheap=True,
    ),
    "previous_token": Diagnostic(
        measures=("previous_token",),
        definition="$w_{i,i-1}$, over rows with $i > 0$",
        source="Clark et al. 2019, arXiv 1906.04341; TransformerLens divides by all rows",
        add=measures.previous_token,
        is_cheap=True,
    ),
    "duplicate_token": Diagnostic(
        measures=("duplicate_token",),
        definition=r"$\sum_{ij} w_{ij} P_{ij} / \sum_{ij} w_{ij}$ over the queries asked for, with $P_{ij} = 1$ where "
        "$j < i$ and token $j$ is token $i$, else 0",
        source='TransformerLens `detect_head`, "duplicate_token_head", error measure "mul"',
        add=measures.duplicate_token,
        is_cheap=True,
        needs_ids=True,
    ),
    "induction": Diagnostic(
        measures=("induction",),
        definition=r"the same with $P_{ij} = 1$ where $0 < j \le i$ and token $j - 1$ is token $i$",
        source='Olsson et al. 2022, arXiv 2209.11895; TransformerLens `detect_head`, "induction_head", "mul"',
        add=measures.induction,
        is_cheap=True,
        needs_ids=True,
    ),
    "mass": Diagnostic(
        measures=("mass",),
        definition=r"$\sum_j w_{ij}$ over the `keys` asked for: 1 for all of them, less where there is an `epsilon`",
        source="ours",
        add=measures.mass,
    ),
    "special": Diagnostic(
        measures=("special",),
        definition=r"$\sum_j w_{ij}$ over [special tokens](#special-tokens)",
        source="Clark et al. 2019, arXiv 1906.04341",
        add=measures.special,
    ),
    "negative": Diagnostic(
        measures=("negative",),
        definition=r"$\sum_j w_{ij}$ over keys with a score below 0: of expressive attention, which squares scores, "
        "the part that looks at the opposite",
        source="ours",
        add=measures.negative,
        needs_scores=True,
    ),
    "received": Diagnostic(
        measures=("received",),
        definition=r"per key $j$: the mean of $w_{ij}$ over the queries asked for with $a_i \le j \le b_i$",
        source="column means of the map",
        add=measures.received,
        axis="key",
    ),
    "redundancy": Diagnostic(
        measures=("head_distance",),
        definition=r"per other head $g$ asked for, of the same layer: "
        r"$\sqrt{\sum_{ij} (w^h_{ij} - w^g_{ij})^2}$ over the queries asked for; small means redundant",
        source="`head_redundancy` of Nielsen et al. 2024, arXiv 2406.13770",
        axis="other head",
    ),
    "collapse": Diagnostic(
        measures=("collapse",),
        definition=r"per layer: mean of $\cos(x_s, x_t)$ over all pairs of different steps, with $x$ the residual "
        "stream after the block",
        source="Nielsen et al. 2024, arXiv 2406.13770, token cosine similarity",
        axis="layer",
        is_cheap=True,
    ),
    "importance": Diagnostic(
        measures=("importance_bits", "importance_logit"),
        definition=r"mean over the predicted `positions` of $\sum_c p_c \log_2 (p_c / p'_c)$, with $p$ the prediction "
        "and $p'$ the one without the head's output; and of how much the logit of the likeliest class falls. "
        "A forward pass per head",
        source="without gradients, in the place of Michel et al. 2019, arXiv 1905.10650",
        axis="ablation",
    ),
}

DEFAULT = ("entropy", *(name for name, one in DIAGNOSTICS.items() if one.is_cheap))


def choose_names(group: str, *, has_ids: bool) -> tuple[str, ...]:
    """Diagnostics that a word stands for, of those that a model with or without token ids has."""
    names = [name for name, one in DIAGNOSTICS.items() if has_ids or not one.needs_ids]
    if group == CHEAP:
        return tuple(name for name in names if DIAGNOSTICS[name].is_cheap)
    # A forward pass per head is no part of "all".
    return tuple(name for name in names if DIAGNOSTICS[name].axis != "ablation")


def diagnose(
    blocks: Iterable[WeightRows], names: Sequence[str], num_heads: int, about: About
) -> dict[str, NDArray[np.float32]]:
    """Measures of one layer, [H] each (`received` [H, keys], `head_distance` [H, H]), in the order asked for.

    NaN stands for "no row qualifies".
    """
    totals: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    products = np.zeros((num_heads, num_heads))
    for rows in blocks:
        block = Block(rows=rows, extent=about.find_extent(rows))
        for name in names:
            add = DIAGNOSTICS[name].add
            for measure, part in {} if add is None else add(block).items():
                if DIAGNOSTICS[name].axis == "key":
                    if measure not in totals:
                        sizes = (num_heads, about.num_keys)
                        totals[measure], counts[measure] = np.zeros(sizes), np.zeros(about.num_keys)
                    totals[measure][:, rows.columns] += part.total
                    counts[measure][rows.columns] += part.count
                else:
                    totals[measure] = totals.get(measure, 0.0) + part.total
                    counts[measure] = counts.get(measure, 0.0) + part.count
        if "redundancy" in names:
            # In float64: the distance of two heads is a difference of sums.
            flat = rows.weights.reshape(num_heads, -1).astype(np.float64)
            products += flat @ flat.T
    found: dict[str, NDArray[np.float32]] = {}
    for name in names:
        for measure in DIAGNOSTICS[name].measures:
            if measure in totals:
                with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no row qualified
                    found[measure] = (totals[measure] / counts[measure]).astype(np.float32)
        if name == "redundancy":
            own = products.diagonal()
            squares = own[:, None] + own - 2 * products
            found["head_distance"] = np.sqrt(np.maximum(squares, 0)).astype(np.float32)
    return found


def diagnostics_table() -> str:
    """The table in markdown, for docs/attention-api.md; ends with a newline."""
    lines = ["| asked for as | measures | definition | source |", "| --- | --- | --- | --- |"]
    for name, one in DIAGNOSTICS.items():
        named = ", ".join(f"`{measure}`" for measure in one.measures)
        mark = f"`{name}`" + (" *" if one.is_cheap else "")
        # Markdown splits cells at bars.
        lines.append(f"| {mark} | {named} | {one.definition.replace('|', chr(92) + '|')} | {one.source} |")
    return "\n".join(lines) + "\n"
