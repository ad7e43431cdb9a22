"""`Describing` says of rows what their weights, recomputed by the weights graphs, add up to."""

from typing import Any

import numpy as np
import pytest

from attnserve.describing import RowStatistics
from attnserve.runtime import Runtime
from attnserve.weighing import Weighing
from tests.attnserve.test_weighing import OLD_BUNDLE, OPTIONS, WEIGHTINGS, layer_of
from tests.kernels.library import build_library, build_recognisable


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(OLD_BUNDLE, num_threads=1, op_library=build_library())


def describe(weighing: Weighing, *arguments: Any, **options: Any) -> RowStatistics:
    assert weighing.describing is not None
    return weighing.describing.describe(*arguments, **options)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", [*OPTIONS, {"epsilon": 0.5}], ids=str)
@pytest.mark.parametrize("steps", [[0], [10], [0, 1, 5, 10], [7, 2, 2], []], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_statistics_are_those_of_the_weights(
    runtime: Runtime, weighting: str, options: dict[str, Any], steps: list[int], dtype: type[np.floating[Any]]
) -> None:
    if weighting == "softmax" and "epsilon" in options:
        pytest.skip("a softmax has no epsilon")
    layer = layer_of(runtime.manifest, weighting, **options)
    random = np.random.default_rng(0)
    key = random.normal(size=(11, layer.num_key_heads, 4)).astype(dtype)
    query = random.normal(size=(len(steps), layer.num_heads, 4)).astype(dtype)
    ids, rows = random.integers(0, 3, 11), np.array(steps, np.int64)
    heads = list(range(layer.num_heads))[::-1]
    found = describe(runtime.weighing, layer, query, key, steps=rows, heads=heads, ids=ids)
    weights = runtime.weighing.weigh_all(layer, query, key, steps=rows, heads=heads).astype(np.float64)
    keys = np.arange(11)
    is_same = ids[rows][:, None] == ids
    expected = {
        "mass": weights.sum(-1),
        "entropy": -(weights * np.log2(np.where(weights > 0, weights, 1))).sum(-1),
        "distance": (weights * abs(rows[:, None] - keys)).sum(-1),
        "sink": weights[:, :, 0],
        "previous": np.where(rows > 0, weights[:, np.arange(len(rows)), rows - 1], 0),
        "self": weights[:, np.arange(len(rows)), rows],
        "duplicate": (weights * (is_same & (keys < rows[:, None]))).sum(-1),
        "induction": (weights * (np.roll(is_same, 1, axis=1) & (keys > 0) & (keys <= rows[:, None]))).sum(-1),
        "received": weights.sum(1),
    }
    assert found.sums.keys() == expected.keys()
    for name, array in found.sums.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert found.steps.tolist() == steps
    for row in range(len(steps)):
        seen = np.flatnonzero(weights[0, row])
        assert [found.first_key[row], found.last_key[row]] == [seen[0], seen[-1]]


def test_features_have_no_tokens_that_repeat(runtime: Runtime) -> None:
    key, query = np.random.default_rng(0).normal(size=(2, 5, 2, 4)).astype(np.float32)
    layer = layer_of(runtime.manifest, "softmax")
    rows = describe(runtime.weighing, layer, query, key, steps=np.arange(5), heads=[1])
    np.testing.assert_allclose(rows.sums["mass"], 1, atol=1e-6)


def test_only_libraries_that_have_the_op_describe() -> None:
    assert Runtime(OLD_BUNDLE, num_threads=1).weighing.describing is None
    assert Runtime(OLD_BUNDLE, num_threads=1, op_library=build_recognisable()).weighing.describing is None
