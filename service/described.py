"""Measures from what AttentionStatistics adds up over rows of weights: as `measures.py`, without the rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnserve.describing import RowStatistics
from attnserve.service.extents import About, Extent
from attnserve.service.measures import Part, sum_rows

# Diagnostics that are means of one of the op's outputs over all rows.
MEANS = ("distance", "sink", "self", "mass")
# Those that are a part of all the weight there is, by the output that is that part.
PARTS = {"duplicate_token": "duplicate", "induction": "induction"}
DESCRIBED = ("entropy", "previous_token", "received", *MEANS, *PARTS)


def choose_described(names: Sequence[str], about: About) -> tuple[str, ...]:
    """Those of `names` that the op says, as they are asked for."""
    # What it adds up is of all keys.
    others = {"mass"} if about.chosen is not None else set()
    if about.exclude_bos or about.exclude_current_token:
        others |= set(PARTS)
    return tuple(name for name in names if name in DESCRIBED and name not in others)


def measure_described(rows: RowStatistics, names: Sequence[str], about: About) -> dict[str, NDArray[np.float32]]:
    """Measures of one layer: [H] each, `received` [H, keys].

    NaN stands for "no row qualifies".
    """
    parts: dict[str, Part] = {}
    for name in names:
        parts |= _add_rows(name, rows, about)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no row qualified
        return {measure: (part.total / part.count).astype(np.float32) for measure, part in parts.items()}


def _add_rows(name: str, rows: RowStatistics, about: About) -> dict[str, Part]:
    sums = rows.sums
    if name == "entropy":
        num_seen = rows.last_key - rows.first_key + 1
        several = num_seen > 1
        normalised = sums["entropy"][:, several] / np.log2(num_seen[several])
        return {"entropy_bits": sum_rows(sums["entropy"]), "entropy_normalised": sum_rows(normalised)}
    if name == "previous_token":
        return {name: sum_rows(sums["previous"][:, rows.steps > 0])}
    if name == "received":
        extent = Extent(
            about=about,
            steps=rows.steps,
            first_key=rows.first_key,
            last_key=rows.last_key,
            keys=np.arange(about.num_keys),
        )
        return {name: Part(total=sums[name], count=extent.num_rows_of_key)}
    if name in PARTS:
        return {name: Part(total=sum_rows(sums[PARTS[name]]).total, count=sum_rows(sums["mass"]).total)}
    assert name in MEANS
    return {name: sum_rows(sums[name])}
