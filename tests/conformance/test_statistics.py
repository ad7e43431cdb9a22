"""AttentionStatistics, kernel and body, says what the formulas say of the whole matrix of weights."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attnserve.export.describing import OUTPUTS, make_graph
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.packed import attention_scores
from tests.conformance import reference
from tests.conformance.cases import AttentionCase, attention_cases, segments_of
from tests.conformance.implementations import IMPLEMENTATIONS, KERNELS, Implementation, Run, as_type

WEIGHTED = {variant.weighting: variant for variant in reversed(VARIANTS.values())}

every_implementation = pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, *KERNELS], ids=lambda one: one.name)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTED)
every_case = pytest.mark.parametrize(
    ("weighting", "case"),
    [
        pytest.param(weighting, case, id=f"{weighting}: {case.name}")
        for weighting in WEIGHTED
        for case in attention_cases(weighting)
    ],
)


def run(
    implementation: Implementation, weighting: str, feeds: dict[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    return dict(zip(OUTPUTS, open_graph(implementation, weighting)(feeds), strict=True))


@cache
def open_graph(implementation: Implementation, weighting: str) -> Run:
    return implementation.open(make_graph(weighting))


def make_feeds(
    num_keys: int,
    *,
    steps: NDArray[np.int64] | None = None,
    causal: bool = True,
    window: int = 0,
    size: int = 8,
    gain: float = 1.0,
    **scalars: float,
) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(num_keys)
    steps = np.arange(num_keys) if steps is None else steps
    feeds = {
        "query": gain * random.standard_normal((3, len(steps), size)),
        "key": random.standard_normal((3, num_keys, size)),
        # Few, so that they repeat.
        "token": random.integers(0, 7, num_keys),
        "step": steps,
        "first_key": np.maximum(steps - window + 1, 0) if window else np.zeros_like(steps),
        "last_key": steps if causal else np.full_like(steps, num_keys - 1),
        **{
            name: np.array(scalars.get(name, default))
            for name, default in (("scale", 0.5), ("softcap", 0.0), ("epsilon", 0.0))
        },
    }
    return as_type(feeds, np.float32)


def oracle(weighting: str, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """From the whole matrix, in float64."""
    scale, softcap, epsilon = (feeds[name].item() for name in ("scale", "softcap", "epsilon"))
    query, key = (torch.from_numpy(feeds[name]).double() for name in ("query", "key"))
    scores = attention_scores(query, key, scale=scale, softcap=softcap)
    column, step = np.arange(key.shape[1]), feeds["step"]
    allowed = (column >= feeds["first_key"][:, None]) & (column <= feeds["last_key"][:, None])
    weights = WEIGHTED[weighting].weigh(scores, torch.from_numpy(allowed), epsilon=epsilon).numpy()
    logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
    rows, token = np.arange(len(step)), feeds["token"]
    is_same = token[step][:, None] == token
    follows = np.roll(is_same, 1, axis=1) & (column > 0)
    before = np.where(step > 0, weights[:, rows, step - 1], 0)
    return {
        "mass": weights.sum(-1),
        "entropy": -(weights * logs).sum(-1),
        "distance": (weights * abs(step[:, None] - column)).sum(-1),
        "sink": weights[:, :, 0],
        "previous": before,
        "self": weights[:, rows, step],
        "duplicate": (weights * (is_same & (column < step[:, None]))).sum(-1),
        "induction": (weights * (follows & (column <= step[:, None]))).sum(-1),
        "received": weights.sum(1),
    }


def assert_agrees(
    implementation: Implementation, weighting: str, feeds: dict[str, NDArray[Any]], tolerance: float = 4e-6
) -> None:
    found, expected = run(implementation, weighting, feeds), oracle(weighting, feeds)
    for name, array in found.items():
        assert array.dtype == np.float32
        # Sums of weights times up to N, and up to N of them.
        largest = max(1.0, abs(expected[name]).max(initial=0))
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance * largest, err_msg=name)


@every_implementation
@every_weighting
@pytest.mark.parametrize("num_keys", [1, 2, 9, 64, 127, 128, 129, 400])
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": False}, {"window": 20}, {"softcap": 1.5, "gain": 3.0}, {"size": 33}, {"gain": 5.0}],
    ids=str,
)
def test_statistics_are_those_of_the_weights(
    implementation: Implementation, weighting: str, num_keys: int, options: dict[str, Any]
) -> None:
    assert_agrees(implementation, weighting, make_feeds(num_keys, **options))


@every_implementation
@every_case
def test_the_grid_has_the_same_statistics(implementation: Implementation, weighting: str, case: AttentionCase) -> None:
    group = case.query.shape[1] // case.key.shape[1]
    for segment, length in zip(segments_of(case.lengths), case.lengths, strict=True):
        seen = [reference.keys_seen(step, length, causal=case.causal, window=case.window) for step in range(length)]
        feeds = {
            "query": case.query[segment].swapaxes(0, 1),
            "key": case.key[segment].repeat(group, axis=1).swapaxes(0, 1),
            "token": np.arange(length) // 2,
            "step": np.arange(length),
            "first_key": np.array([keys[0] for keys in seen]),
            "last_key": np.array([keys[-1] for keys in seen]),
            **{name: np.array(getattr(case, name)) for name in ("scale", "softcap", "epsilon")},
        }
        # Scores of 300 carry what float32 rounds in inputs and products into the weights.
        tolerance = 3e-4 if "large" in case.name else 4e-6
        assert_agrees(implementation, weighting, as_type(feeds, np.float32), tolerance)


@every_implementation
@pytest.mark.parametrize("epsilon", [1e-3, 2.0])
def test_rows_that_do_not_add_up_to_one(implementation: Implementation, epsilon: float) -> None:
    assert_agrees(implementation, "expressive", make_feeds(150, epsilon=epsilon))


@every_implementation
def test_a_softmax_has_no_epsilon(implementation: Implementation) -> None:
    feeds = make_feeds(20)
    found, other = (
        run(implementation, "softmax", {**feeds, "epsilon": np.array(epsilon, np.float32)}) for epsilon in (0, 1)
    )
    assert all(np.array_equal(found[name], other[name]) for name in OUTPUTS)


@every_implementation
@every_weighting
def test_any_rows_in_any_order(implementation: Implementation, weighting: str) -> None:
    for steps in ([299], [5, 5, 0, 280, 130], list(range(299, -1, -3))):
        assert_agrees(implementation, weighting, make_feeds(300, steps=np.array(steps, np.int64)))


@every_implementation
@every_weighting
def test_rows_without_keys_have_no_weights(implementation: Implementation, weighting: str) -> None:
    feeds = make_feeds(20)
    feeds["first_key"][7], feeds["last_key"][7] = 12, 3
    found = run(implementation, weighting, feeds)
    for name in list(OUTPUTS)[:-1]:
        assert (found[name][:, 7] == 0).all()
    np.testing.assert_allclose(found["received"].sum(1), 19, rtol=0, atol=1e-5)


@every_implementation
def test_rows_whose_scores_are_all_zero(implementation: Implementation) -> None:
    feeds = make_feeds(40)
    feeds["query"][:, 9] = 0
    found = run(implementation, "expressive", feeds)
    assert all((found[name][:, 9] == 0).all() for name in list(OUTPUTS)[:-1])
    found = run(implementation, "softmax", feeds)
    np.testing.assert_allclose(found["entropy"][:, 9], math.log2(10), rtol=1e-6)


@every_implementation
@every_weighting
def test_a_number_that_is_none_is_not_hidden(implementation: Implementation, weighting: str) -> None:
    feeds = make_feeds(40)
    feeds["query"][1, 30] = np.nan
    found = run(implementation, weighting, feeds)
    for name in ("entropy", "distance", "sink", "self"):
        assert np.isnan(found[name][1, 30])
        assert np.isnan(found[name]).sum() == 1
