"""`Describing` says of rows what their weights, recomputed by the weights graphs, add up to."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attnserve.describing import RECEIVED, Describing, statistics_file
from attnserve.runtime import Runtime
from attnserve.sessions import open_session
from tests.attnserve.test_weighing import OLD_BUNDLE, OPTIONS, WEIGHTINGS, layer_of
from tests.kernels.library import build_library, build_recognisable


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(OLD_BUNDLE, num_threads=1)


@pytest.fixture(scope="module", params=["bodies", "kernels"])
def describing(request: pytest.FixtureRequest) -> Describing:
    library = build_library() if request.param == "kernels" else None
    sessions = {weighting: open_session(statistics_file(weighting), "cpu", 1, library) for weighting in WEIGHTINGS}
    return Describing(sessions, has_kernels=library is not None)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", [*OPTIONS, {"epsilon": 0.5}], ids=str)
@pytest.mark.parametrize("steps", [[0], [10], [0, 1, 5, 10], [7, 2, 2], [*range(11)], []], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_statistics_are_those_of_the_weights(
    runtime: Runtime,
    describing: Describing,
    monkeypatch: pytest.MonkeyPatch,
    weighting: str,
    options: dict[str, Any],
    steps: list[int],
    dtype: type[np.floating[Any]],
) -> None:
    # Blocks of two rows.
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", 1)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 2)
    if weighting == "softmax" and "epsilon" in options:
        pytest.skip("a softmax has no epsilon")
    layer = layer_of(runtime.manifest, weighting, **options)
    random = np.random.default_rng(0)
    key = random.normal(size=(11, layer.num_key_heads, 4)).astype(dtype)
    query = random.normal(size=(len(steps), layer.num_heads, 4)).astype(dtype)
    ids, rows = random.integers(0, 3, 11), np.array(steps, np.int64)
    heads = list(range(layer.num_heads))[::-1]
    found = describing.describe(layer, query, key, steps=rows, heads=heads, ids=ids)
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


def test_features_have_no_tokens_that_repeat(runtime: Runtime, describing: Describing) -> None:
    key, query = np.random.default_rng(0).normal(size=(2, 5, 2, 4)).astype(np.float32)
    layer = layer_of(runtime.manifest, "softmax")
    rows = describing.describe(layer, query, key, steps=np.arange(5), heads=[1])
    np.testing.assert_allclose(rows.sums["mass"], 1, atol=1e-6)


def test_without_heads_there_is_nothing(runtime: Runtime, describing: Describing) -> None:
    rows = np.zeros((5, 2, 4), np.float32)
    found = describing.describe(layer_of(runtime.manifest, "softmax"), rows, rows, steps=np.arange(5), heads=[])
    assert {array.shape for array in found.sums.values()} == {(0, 5)}


def test_bodies_take_blocks_and_kernels_all_rows(
    runtime: Runtime, describing: Describing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", 1)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 2)
    rows = np.zeros((5, 2, 4), np.float32)
    calls: list[None] = []
    describing.describe(
        layer_of(runtime.manifest, "softmax"),
        rows,
        rows,
        steps=np.arange(5),
        heads=[0],
        check=lambda: calls.append(None),
    )
    assert len(calls) == (1 if describing.has_kernels else 3)


class Recorder:
    """A session that keeps what it is fed, and gives the number of its runs for every output."""

    def __init__(self) -> None:
        self.fed: list[dict[str, NDArray[Any]]] = []

    def run(self, names: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        self.fed.append(feeds)
        sizes = {name: len(feeds["token" if name == RECEIVED else "step"]) for name in names}
        return [np.full((len(feeds["query"]), size), len(self.fed), np.float32) for size in sizes.values()]


@pytest.mark.parametrize("ids", [None, np.array([3, 1, 3, 1, 3, 1, 3])])
def test_a_block_has_the_keys_that_its_rows_see_and_the_one_before(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, ids: NDArray[np.int64] | None
) -> None:
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", 1)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 2)
    layer = layer_of(runtime.manifest, "expressive", causal=True, window=2, epsilon=0.5)
    key = np.random.default_rng(0).normal(size=(7, 2, 4)).astype(np.float32)
    session, steps = Recorder(), np.array([0, 4, 5])
    describing = Describing({"expressive": session}, has_kernels=False)
    found = describing.describe(layer, key[steps], key, steps=steps, heads=[1], ids=ids)
    first, second = session.fed
    assert (first["step"].tolist(), len(first["token"])) == ([0, 4], 5)
    np.testing.assert_array_equal(second.pop("query"), key[None, [5], 1])
    np.testing.assert_array_equal(second.pop("key"), key[None, 3:6, 1])
    assert {name: array.tolist() for name, array in second.items()} == {
        "token": [0, 0, 0] if ids is None else [1, 3, 1],
        "step": [2],
        "first_key": [1],
        "last_key": [2],
        "scale": layer.scale,
        "softcap": 0.0,
        "epsilon": 0.5,
    }
    assert found.sums["mass"].tolist() == [[1, 1, 2]]
    assert found.sums["received"].tolist() == [[1, 1, 1, 3, 3, 2, 0]]
    assert (found.first_key.tolist(), found.last_key.tolist()) == ([0, 3, 4], [0, 4, 5])


def test_only_libraries_that_have_the_op_describe_on_a_cpu() -> None:
    assert Runtime(OLD_BUNDLE, num_threads=1).weighing.describing is None
    assert Runtime(OLD_BUNDLE, num_threads=1, op_library=build_recognisable()).weighing.describing is None
    describing = Runtime(OLD_BUNDLE, num_threads=1, op_library=build_library()).weighing.describing
    assert describing is not None
    assert describing.has_kernels
