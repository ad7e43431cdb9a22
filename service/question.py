"""The question about attention in a request: of which heads and steps, what, and how it is put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.comparison import Comparison, parse_comparison
from attnserve.service.diagnostics import ALL, CHEAP, DEFAULT, DIAGNOSTICS, choose_names
from attnserve.service.formats.coding import CODINGS
from attnserve.service.problems import Invalid
from attnserve.service.selection import (
    MAX_ENTRIES,
    describe,
    parse_choice,
    parse_flag,
    parse_indices,
    parse_names,
    parse_pairs,
)
from attnserve.service.selectors import drop_steps, parse_selector
from attnserve.service.sequences import Input, Reader
from attnserve.service.words import Words, find_words

MAPS = ("weights", "signed", "scores", "weighted")
QUANTITIES = ("diagnostics", *MAPS, "received", "rollout", "qk", "metric")
SPARSE = ("weights", "weighted", "rollout")
"""Quantities whose rows may be cut down to their largest entries."""
UNSIGNED = ("weights", "weighted", "received", "rollout")
REDUCED = {
    "weights": ("layers", "heads", "queries", "tokens"),
    "weighted": ("layers", "heads", "queries", "tokens"),
    "received": ("layers", "heads", "tokens"),
    "rollout": ("heads", "queries", "tokens"),
    "signed": ("layers", "heads"),
    "scores": ("layers", "heads"),
}
"""What of each quantity can be put together: a mean of scores over queries would be one over what some cannot see."""
REDUCTIONS = {
    "layers": ("none", "mean", "max", "min"),
    "heads": ("none", "mean", "max", "min"),
    "queries": ("none", "mean", "sum"),
    "tokens": ("subword", "word"),
}
SPECIAL = ("keep", "drop", "drop_renormalise")

# Their default is that nothing is asked; null is as if they were not there.
NULLABLE = ("pairs", "reduce", "top_keys", "min_weight", "compare", "ablate")
FIELDS = (
    *("layers", "heads", "pairs", "queries", "keys", "special_tokens"),
    *("quantity", "diagnostics", "exclude_bos", "exclude_current_token"),
    *("reduce", "top_keys", "min_weight", "dtype", "compare", "ablate", "dry_run"),
)


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """What is put together; of each axis a word in `REDUCTIONS`."""

    layers: str = "none"
    heads: str = "none"
    queries: str = "none"
    tokens: str = "subword"


# Without a repr: words are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Question:
    """What is asked about the attention of a request's sequences; all indices absolute and checked."""

    layers: list[int]
    heads: list[int]
    is_paired: bool = False
    """Whether `layers` and `heads` are two sides of pairs, not of a grid."""
    queries: list[NDArray[np.int64]]
    """Steps per sequence."""
    keys: list[NDArray[np.int64]] | None = None
    """Steps per sequence; None is all of them, in order."""
    special_tokens: str = "keep"
    special: list[NDArray[np.bool_]] = field(default_factory=list)
    """Per sequence the steps that are special tokens; empty if nobody asks."""
    quantity: str = "diagnostics"
    diagnostics: tuple[str, ...] = ()
    exclude_bos: bool = False
    exclude_current_token: bool = False
    reduce: Reduce = Reduce()
    words: list[Words] | None = None
    """Per sequence, where tokens are put together."""
    top_keys: int | None = None
    """Entries of a row that are kept, the largest; None is all."""
    min_weight: float = 0.0
    """Smallest entry that is kept."""
    dtype: str = "float32"
    compare: Comparison | None = None
    is_compared: bool = False
    """Whether this is one side of a comparison, whose rows are held against those of the other."""
    ablate: list[tuple[int, int]] = field(default_factory=list)
    """Layers and heads that are switched off in a pass of their own."""
    dry_run: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether rows are cut down to their largest entries."""
        return self.top_keys is not None or self.min_weight > 0

    def num_keys(self, lengths: Sequence[int]) -> list[int]:
        """Keys asked for, per sequence."""
        return list(lengths) if self.keys is None else [len(keys) for keys in self.keys]


def parse_question(fields: dict[str, Any], reader: Reader, inputs: Sequence[Input], prefix: str) -> Question:
    """Check what is asked about attention.

    Args:
        fields: part of the request's JSON; names other than `FIELDS` are not looked at.
        reader: of the model asked.
        inputs: of the request, checked.
        prefix: put before the names of fields in complaints.
    """
    fields = {name: value for name, value in fields.items() if value is not None or name not in NULLABLE}
    quantity = parse_choice(fields, "quantity", QUANTITIES, prefix)
    layers, heads = _parse_heads(fields, reader, prefix)
    is_paired = "pairs" in fields
    if quantity in ("qk", "metric"):
        _check_layers(quantity, layers, is_paired, reader, prefix)
    if quantity == "diagnostics":
        names = _parse_diagnostics(fields, reader, is_paired, prefix)
    else:
        names = ()
        _check_maps(fields, prefix)
    special_tokens = parse_choice(fields, "special_tokens", SPECIAL, prefix)
    special: list[NDArray[np.bool_]] = []
    if special_tokens != "keep" or "special" in names:
        special = [reader.find_special(read) for read in inputs]
    queries = parse_selector(fields.get("queries", "all"), f"{prefix}queries", reader, inputs)
    keys = None
    if "keys" in fields or special_tokens != "keep":
        keys = parse_selector(fields.get("keys", "all"), f"{prefix}keys", reader, inputs)
    if special_tokens != "keep":
        queries, keys = (drop_steps(steps, special, f"{prefix}special_tokens") for steps in (queries, keys or []))
    if quantity == "diagnostics" and "keys" in fields and "mass" not in names:
        raise Invalid.about(f"{prefix}keys", "of the diagnostics only mass has keys; expected none")
    reduce = _parse_reduce(fields, quantity, inputs, is_paired, prefix)
    top_keys, min_weight = _parse_sparse(fields, quantity, prefix)
    return Question(
        layers=layers,
        heads=heads,
        is_paired=is_paired,
        queries=queries,
        keys=keys,
        special_tokens=special_tokens,
        special=special,
        quantity=quantity,
        diagnostics=names,
        exclude_bos=parse_flag(fields, "exclude_bos", prefix),
        exclude_current_token=parse_flag(fields, "exclude_current_token", prefix),
        reduce=reduce,
        words=[find_words(read, reader) for read in inputs] if reduce.tokens == "word" else None,
        top_keys=top_keys,
        min_weight=min_weight,
        dtype=_parse_dtype(fields, quantity, prefix),
        compare=_parse_compare(fields, quantity, reduce, reader, inputs, prefix),
        is_compared="compare" in fields,
        ablate=_parse_ablate(fields, reader, prefix),
        dry_run=parse_flag(fields, "dry_run", prefix),
    )


def _parse_heads(fields: dict[str, Any], reader: Reader, prefix: str) -> tuple[list[int], list[int]]:
    sizes = len(reader.manifest.layers), reader.manifest.num_heads
    if "pairs" not in fields:
        layers = parse_indices(fields.get("layers", "all"), f"{prefix}layers", sizes[0], "layers")
        return layers.tolist(), parse_indices(fields.get("heads", "all"), f"{prefix}heads", sizes[1], "heads").tolist()
    for name in ("layers", "heads"):
        if name in fields:
            raise Invalid.about(f"{prefix}{name}", f"expected none together with pairs, got {describe(fields[name])}")
    pairs = parse_pairs(fields["pairs"], f"{prefix}pairs", sizes, ("layer", "head"))
    return pairs[:, 0].tolist(), pairs[:, 1].tolist()


def _check_layers(quantity: str, layers: list[int], is_paired: bool, reader: Reader, prefix: str) -> None:
    """Refuse what is not of layers, or not of these."""
    if is_paired:
        raise Invalid.about(f"{prefix}pairs", f"{quantity} is by layer: expected layers and heads, got pairs")
    captures = [reader.manifest.layers[layer].captures for layer in layers]
    if quantity == "metric" and not any("metric" in names for names in captures):
        raise Invalid.about(
            f"{prefix}quantity", "none of the layers asked for has a metric; expected an elliptical one"
        )


def _check_maps(fields: dict[str, Any], prefix: str) -> None:
    """Refuse what a map would leave out: whoever asks for both would take it for an answer without measures."""
    for name in ("diagnostics", "exclude_bos", "exclude_current_token"):
        if fields.get(name, False) is not False:
            message = f"expected only with the quantity diagnostics, got {describe(fields[name])}"
            raise Invalid.about(f"{prefix}{name}", message)


def _parse_dtype(fields: dict[str, Any], quantity: str, prefix: str) -> str:
    dtype = parse_choice(fields, "dtype", CODINGS, prefix)
    if dtype == "uint8_sqrt" and quantity not in ("diagnostics", *UNSIGNED):
        message = f"{quantity} may be negative, and has no square roots; expected float32 or float16"
        raise Invalid.about(f"{prefix}dtype", message)
    return dtype


def _parse_compare(
    fields: dict[str, Any], quantity: str, reduce: Reduce, reader: Reader, inputs: Sequence[Input], prefix: str
) -> Comparison | None:
    if "compare" not in fields:
        return None
    if quantity in ("qk", "metric"):
        raise Invalid.about(f"{prefix}compare", f"what {quantity} is made of is not compared; expected none")
    if reduce.tokens == "word":
        raise Invalid.about(
            f"{prefix}reduce.tokens", "words of two sides are not the same; expected subword with compare"
        )
    return parse_comparison(fields["compare"], reader, inputs, f"{prefix}compare")


def _parse_ablate(fields: dict[str, Any], reader: Reader, prefix: str) -> list[tuple[int, int]]:
    if "ablate" not in fields:
        return []
    sizes = len(reader.manifest.layers), reader.manifest.num_heads
    pairs = parse_pairs(fields["ablate"], f"{prefix}ablate", sizes, ("layer", "head"))
    return [(layer, head) for layer, head in pairs.tolist()]


def _parse_diagnostics(fields: dict[str, Any], reader: Reader, is_paired: bool, prefix: str) -> tuple[str, ...]:
    has_ids = reader.manifest.num_features is None
    value = fields.get("diagnostics")
    if "diagnostics" not in fields:
        return tuple(name for name in DEFAULT if has_ids or not DIAGNOSTICS[name].needs_ids)
    if isinstance(value, str) and value in (CHEAP, ALL):
        names = choose_names(value, has_ids=has_ids)
        return tuple(name for name in names if not (is_paired and name == "redundancy"))
    names = parse_names(value, f"{prefix}diagnostics", tuple(DIAGNOSTICS), also='"cheap", "all" or ')
    for place, name in enumerate(names):
        if DIAGNOSTICS[name].needs_ids and not has_ids:
            message = f"this model reads features, which are no tokens: expected another than {name}"
            raise Invalid.about(f"{prefix}diagnostics[{place}]", message)
        if is_paired and name == "redundancy":
            message = "redundancy compares the heads of a layer: expected layers and heads, not pairs"
            raise Invalid.about(f"{prefix}diagnostics[{place}]", message)
    return names


def _parse_reduce(
    fields: dict[str, Any], quantity: str, inputs: Sequence[Input], is_paired: bool, prefix: str
) -> Reduce:
    value = fields.get("reduce", {})
    if not isinstance(value, dict):
        raise Invalid.about(f"{prefix}reduce", f"expected an object, got {describe(value)}")
    allowed = REDUCED.get(quantity, ())
    if is_paired:
        allowed = tuple(name for name in allowed if name != "layers")
    for name in value:
        if name not in allowed:
            expected = f"one of {', '.join(allowed)}" if allowed else "none"
            message = f"unknown field of the quantity {quantity}{' of pairs' * is_paired}; expected {expected}"
            raise Invalid.about(f"{prefix}reduce.{name[:64]}", message)
    words = {name: parse_choice(value, name, REDUCTIONS[name], f"{prefix}reduce.") for name in value}
    if words.get("tokens") == "word":
        for number, read in enumerate(inputs):
            if read.text is None:
                message = f"words are those of texts: expected subword, since sequences[{number}] is none"
                raise Invalid.about(f"{prefix}reduce.tokens", message)
    return Reduce(**words)


def _parse_sparse(fields: dict[str, Any], quantity: str, prefix: str) -> tuple[int | None, float]:
    top_keys, min_weight = fields.get("top_keys"), fields.get("min_weight", 0)
    for name in ("top_keys", "min_weight"):
        if name in fields and quantity not in SPARSE:
            got = describe(fields[name])
            raise Invalid.about(f"{prefix}{name}", f"expected only with {', '.join(SPARSE)}, got {got}")
    if top_keys is not None and (type(top_keys) is not int or not 1 <= top_keys <= MAX_ENTRIES):
        message = f"expected an integer from 1 to {MAX_ENTRIES}, the entries of a row, got {describe(top_keys)}"
        raise Invalid.about(f"{prefix}top_keys", message)
    if type(min_weight) not in (int, float) or not 0 <= min_weight <= 1:
        raise Invalid.about(f"{prefix}min_weight", f"expected a number from 0 to 1, got {describe(min_weight)}")
    return top_keys, float(min_weight)
