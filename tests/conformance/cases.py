"""The seeded cases every implementation of every variant is held to: torch, the ONNX bodies, a kernel.

Numpy float64 only, so that whoever runs them chooses the precision. Import as `tests.conformance.cases`: in importlib
mode pytest makes that name known, and with `tests` itself on the path `tests/attnserve` would shadow the package.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.packing import pack

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """Inputs and attributes of one attention op."""

    name: str
    lengths: tuple[int, ...]
    causal: bool
    scale: float
    epsilon: float
    window: int
    softcap: float
    query: Array
    """[T, H, E]"""
    key: Array
    """[T, K, E]"""
    value: Array
    """[T, K, V]"""
    slots: NDArray[np.int64]
    """[B, N]"""

    @property
    def attributes(self) -> dict[str, float | int | bool]:
        """The op's attributes by name."""
        names = ("causal", "scale", "epsilon", "window", "softcap")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class MetricCase:
    """Inputs and attributes of one elliptical metric."""

    name: str
    lengths: tuple[int, ...]
    scope: str
    scaling: str
    value: Array
    """[T, K, E]"""
    previous_value: Array
    """[T, K, E]"""
    slots: NDArray[np.int64]
    """[B, N]"""


def slots_of(lengths: tuple[int, ...]) -> NDArray[np.int64]:
    """`slots` [B, N] of sequences of these lengths, from their only maker."""
    return pack([np.zeros(length, np.int64) for length in lengths]).slots


def segments_of(lengths: tuple[int, ...]) -> list[slice]:
    """The packed rows of each sequence."""
    ends = np.cumsum(lengths)
    return [slice(int(end) - length, int(end)) for end, length in zip(ends, lengths, strict=True)]


def attention_case(
    name: str,
    lengths: tuple[int, ...] = (4, 1, 6),
    *,
    causal: bool,
    num_heads: int = 2,
    num_key_heads: int = 2,
    head_size: int = 4,
    value_size: int = 4,
    scale: float | None = None,
    epsilon: float = 0.0,
    window: int = 0,
    softcap: float = 0.0,
    gain: float = 1.0,
) -> AttentionCase:
    """Make one case; `gain` multiplies the queries, so it sets the size of the scores.

    The seed is the name, so a case does not change when others are added before it.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    num_rows = sum(lengths)
    return AttentionCase(
        name=f"{name}, {'causal' if causal else 'bidirectional'}",
        lengths=lengths,
        causal=causal,
        scale=1 / math.sqrt(head_size) if scale is None else scale,
        epsilon=epsilon,
        window=window,
        softcap=softcap,
        query=gain * random.standard_normal((num_rows, num_heads, head_size)),
        key=random.standard_normal((num_rows, num_key_heads, head_size)),
        value=random.standard_normal((num_rows, num_key_heads, value_size)),
        slots=slots_of(lengths),
    )


def attention_cases(weighting: str) -> list[AttentionCase]:
    """The grid for one weighting; cases with an epsilon exist for "expressive" only."""
    cases = []
    for causal in (True, False):
        cases += [
            attention_case("one step alone", (1,), causal=causal),
            attention_case("one sequence", (7,), causal=causal),
            attention_case("one step each", (1, 1, 1), causal=causal),
            attention_case("equal lengths", (5, 5), causal=causal),
            attention_case("mixed lengths", (5, 1, 3, 8), causal=causal),
            attention_case("longest first", (9, 2, 1), causal=causal),
            attention_case("one head", causal=causal, num_heads=1, num_key_heads=1),
            attention_case("one key head for four", causal=causal, num_heads=4, num_key_heads=1),
            attention_case("two key heads for six", causal=causal, num_heads=6, num_key_heads=2),
            attention_case("values larger than keys", causal=causal, value_size=7),
            attention_case("values of one channel", causal=causal, value_size=1),
            attention_case("keys of one channel", causal=causal, head_size=1, value_size=3),
            attention_case("own scale", causal=causal, scale=1.7),
            attention_case("window of one", causal=causal, window=1),
            attention_case("window of three", (5, 1, 3, 8), causal=causal, window=3),
            attention_case("window wider than any sequence", causal=causal, window=64),
            attention_case("softcap", causal=causal, softcap=1.5, gain=4.0),
            attention_case("softcap, window, groups", causal=causal, softcap=3.0, window=2, num_heads=4),
            attention_case("small scores", causal=causal, gain=1e-5),
            attention_case("large scores", causal=causal, gain=300.0),
            _without_scores(attention_case("all-zero scores", causal=causal)),
        ]
        if weighting == "expressive":
            cases += [
                attention_case("epsilon", causal=causal, epsilon=0.03),
                attention_case("epsilon above small scores", causal=causal, epsilon=1e-6, gain=1e-4),
                _without_scores(attention_case("epsilon, all-zero scores", causal=causal, epsilon=1e-3)),
            ]
    return cases


def metric_cases() -> list[MetricCase]:
    """The grid of the elliptical metric: every scope and scaling, and every way to 0 / 0."""
    return [
        _metric_case(name, lengths, scope, scaling, head_size)
        for scope in ("sequence", "prefix", "sequence-leaky")
        for scaling in ("max", "mean")
        for name, lengths, head_size in (
            ("one step alone", (1,), 4),
            ("one sequence", (6,), 4),
            ("one step each", (1, 1), 4),
            ("mixed lengths", (5, 1, 3, 8), 4),
            ("heads of one channel", (4, 2), 1),
            ("one head unchanged", (4, 1, 2), 3),
            ("first steps unchanged", (5, 3), 3),
            ("one sequence unchanged", (3, 4), 3),
            ("one channel unchanged", (3, 4), 3),
        )
    ]


def layer_options(variant: str, *, causal: bool) -> list[dict[str, str]]:
    """Every legal choice of a variant's own options in a layer (`AttentionConfig`), the leaky one left out."""
    if variant != "elliptical":
        return [{}]
    return [{"scope": "prefix" if causal else "sequence", "scaling": scaling} for scaling in ("max", "mean")]


def _without_scores(case: AttentionCase) -> AttentionCase:
    # One query orthogonal to everything, and one sequence whose keys all vanish: rows of 0 / 0 in the formula.
    case.query[1] = 0
    case.key[segments_of(case.lengths)[-1]] = 0
    return case


def _metric_case(name: str, lengths: tuple[int, ...], scope: str, scaling: str, head_size: int) -> MetricCase:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    value, previous = random.standard_normal((2, sum(lengths), 2, head_size))
    segments = segments_of(lengths)
    if name == "one head unchanged":
        previous[:, 1] = value[:, 1]
    elif name == "first steps unchanged":
        previous[segments[0]][:3] = value[segments[0]][:3]
    elif name == "one sequence unchanged":
        previous[segments[1]] = value[segments[1]]
    elif name == "one channel unchanged":
        previous[..., 0] = value[..., 0]
    return MetricCase(
        name=f"{name}, {scope}, {scaling}",
        lengths=lengths,
        scope=scope,
        scaling=scaling,
        value=value,
        previous_value=previous,
        slots=slots_of(lengths),
    )
