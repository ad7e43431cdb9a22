"""Headers of answers that hold maps: what the numbers are, for whoever opens nothing but the body."""

from collections.abc import Sequence

from attnserve.bundle import Layer
from attnserve.service.formats.coding import SCALE

# Of one header; servers and proxies refuse heads of 8 KiB.
MAX_CHARACTERS = 512


def describe_layers(layers: Sequence[Layer], *, causal: bool) -> dict[str, str]:
    """How the layers attend that an answer is about: words once each, in the order of the layers."""
    return {
        "Attention-Kind": ",".join(dict.fromkeys(layer.variant for layer in layers)),
        "Attention-Normalization": ",".join(dict.fromkeys(layer.weighting for layer in layers)),
        # A boolean of structured fields (RFC 9651).
        "Attention-Causal": "?1" if causal else "?0",
    }


def describe_array(shape: Sequence[int], axes: Sequence[str]) -> dict[str, str]:
    """Sizes of an array, and what its axes are."""
    return {"Attention-Shape": ",".join(map(str, shape)), "Attention-Axes": ",".join(axes)}


def describe_selection(**indices: Sequence[int]) -> dict[str, str]:
    """Absolute indices, by the name of what they count; those that take too long to say are left to the body."""
    named = {f"Attention-{name.capitalize()}": _join(values) for name, values in indices.items()}
    return {name: text for name, text in named.items() if len(text) <= MAX_CHARACTERS}


def describe_coding(coding: str, row_error: float | None) -> dict[str, str]:
    """Type of the numbers, and what the worst row lost by it, measured on this very answer; None is no rows."""
    dtype, _, function = coding.partition("_")
    how = {"Attention-Coding": f"{function}; scale=row; scale-dtype=float32; scale-name={SCALE}"} if function else {}
    error = {} if row_error is None else {"Attention-Max-Row-Error": f"{row_error:.3g}"}
    return {"Attention-Dtype": dtype, **how, **error}


def _join(values: Sequence[int]) -> str:
    """Indices as a client may write them: runs of successive ones are slices."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([value, value + 1])
    return ",".join(str(start) if end == start + 1 else f"{start}:{end}" for start, end in runs)
