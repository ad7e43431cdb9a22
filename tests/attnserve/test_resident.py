"""Captures that stay are those that come to the host, and so are the weights that are computed of them."""

import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from attnserve import rows as module
from attnserve.bound import BoundSession, DeviceFailure
from attnserve.bundle import Manifest, read_manifest
from attnserve.describing import Describing, statistics_file
from attnserve.resident import DTYPES, GRAPHS, Held, Resident, capture_file, fetch, is_finite, sum_units
from attnserve.rows import keys_by_head, part_of, queries_by_head
from attnserve.sessions import open_session
from attnserve.weighing import Weighing
from tests.attnserve.test_weighing import KINDS, OLD_BUNDLE, OPTIONS, WEIGHTINGS, layer_of, open_graphs, weights_by_hand


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(OLD_BUNDLE)


@pytest.fixture(scope="module", params=KINDS)
def weighing(request: pytest.FixtureRequest) -> Weighing:
    return Weighing({path: bind(session) for path, session in open_graphs(request.param).items()})


def bind(session: onnxruntime.InferenceSession) -> BoundSession:
    return BoundSession(session, device="cpu", gpu=0)


@pytest.fixture(scope="module")
def graphs() -> dict[str, dict[str, BoundSession]]:
    return {
        dtype: {graph: bind(open_session(capture_file(graph, dtype), "cpu", 1)) for graph in GRAPHS} for dtype in DTYPES
    }


@pytest.fixture
def keep(graphs: dict[str, dict[str, BoundSession]]) -> Any:
    """Makes a resident of an array, as if that were on a device."""

    def make(array: NDArray[Any]) -> Resident:
        held = Held(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return Resident(held=held, rows=np.arange(len(array)), graphs=graphs[array.dtype.name])

    return make


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_indexed_as_the_array_it_stands_for(keep: Any, dtype: str) -> None:
    array = np.random.default_rng(0).normal(size=(9, 4, 3)).astype(dtype)
    resident = keep(array)
    for steps in (slice(2, 7), slice(None), np.array([5, 0, 5]), slice(None, None, -1)):
        assert len(resident[steps]) == len(array[steps])
        np.testing.assert_array_equal(fetch(resident[steps]), array[steps])
        np.testing.assert_array_equal(fetch(resident[steps][1:]), array[steps][1:])
    assert fetch(array) is array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [[0, 1, 2, 3], [3, 0, 3]], ids=str)
def test_a_part_by_head_is_that_of_the_array(keep: Any, manifest: Manifest, dtype: str, heads: list[int]) -> None:
    layer = layer_of(manifest, "softmax", num_heads=4, num_key_heads=2)
    query, key = np.random.default_rng(0).normal(size=(2, 9, 4, 3)).astype(dtype)
    key = np.ascontiguousarray(key[:, :2])
    rows = slice(2, 6)
    for there, here in (
        (queries_by_head(keep(query)[::2], heads), queries_by_head(query[::2], heads)),
        (keys_by_head(layer, keep(key), heads), keys_by_head(layer, key, heads)),
    ):
        found = part_of(there, rows)
        assert isinstance(found, onnxruntime.OrtValue)
        np.testing.assert_array_equal(found.numpy(), part_of(here, rows))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [[10], [0, 1, 5, 10], [7, 2, 2]], ids=str)
def test_weights_are_those_of_the_formula(
    keep: Any, weighing: Weighing, manifest: Manifest, weighting: str, options: dict[str, Any], dtype: str, steps: Any
) -> None:
    layer = layer_of(manifest, weighting, **options)
    random = np.random.default_rng(0)
    key = random.normal(size=(11, layer.num_key_heads, 4)).astype(dtype)
    query = random.normal(size=(11, layer.num_heads, 4)).astype(dtype)
    heads = list(range(layer.num_heads))[::-1]
    rows = np.array(steps)
    (block,) = weighing.weigh(layer, keep(query)[rows], keep(key), steps=rows, heads=heads, with_scores=True)
    expected = weights_by_hand(layer, query[rows], key, steps, heads)
    np.testing.assert_allclose(block.weights, expected[:, :, block.columns], rtol=0, atol=2e-6)
    assert block.scores is not None


def test_blocks_are_as_large_as_they_may(
    keep: Any, weighing: Weighing, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(manifest, "softmax", causal=True)
    key, query = np.random.default_rng(0).normal(size=(2, 9, 2, 4)).astype(np.float32)
    # On the host it would be a row at a time. 2 heads of 9 keys.
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 1)
    monkeypatch.setattr(module, "MIN_BLOCK_ROWS", 1)
    monkeypatch.setattr(module, "MAX_BLOCK_NUMBERS", 4 * 18)
    steps = np.arange(9)
    blocks = list(weighing.weigh(layer, keep(query), keep(key), steps=steps, heads=[0, 1]))
    assert [block.rows for block in blocks] == [slice(0, 4), slice(4, 8), slice(8, 9)]
    whole = weighing.weigh_all(layer, keep(query), keep(key), steps=steps, heads=[0, 1])
    np.testing.assert_allclose(whole, weights_by_hand(layer, query, key, range(9), [0, 1]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_rows_add_up_to_what_those_of_arrays_do(
    keep: Any, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, weighting: str, dtype: str, causal: bool
) -> None:
    layer = layer_of(manifest, weighting, causal=causal, num_heads=4, num_key_heads=2)
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, 11, 4, 3)).astype(dtype)
    key = np.ascontiguousarray(key[:, :2])
    ids, steps, heads = random.integers(0, 3, 11), np.arange(11)[::-1].copy(), [3, 0, 1]
    # Of 3 heads of 11 keys, 4 rows at a time.
    monkeypatch.setattr(module, "MAX_BLOCK_NUMBERS", 4 * 33)
    session = open_session(statistics_file(weighting), "cpu", 1)
    found, expected = (
        describing.describe(layer, rows, keys, steps=steps, heads=heads, ids=ids).sums
        for describing, rows, keys in (
            (Describing({weighting: bind(session)}, has_kernels=False), keep(query)[steps], keep(key)),
            (Describing({weighting: session}, has_kernels=False), query[steps], key),
        )
    )
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_where_it_is(keep: Any, dtype: str, number: float) -> None:
    array = np.ones((6, 2, 3), dtype)
    assert is_finite(array)
    assert is_finite(keep(array))
    array[4, 1, 0] = number
    for captured in (array, keep(array)):
        assert not is_finite(captured)
        assert not is_finite(captured[3:])
        # Of another sequence of the batch.
        assert is_finite(captured[:4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_units_add_up_where_they_are(keep: Any, dtype: str) -> None:
    array = np.random.default_rng(0).normal(size=(9, 40))
    # As long and as short as they come: no type holds their squares.
    array[:4] *= np.sqrt(np.finfo(dtype).max)
    array[4:] *= np.sqrt(np.finfo(dtype).tiny) * 1e-3
    array = array.astype(dtype)
    array[3] = 0
    kept = np.arange(9) != 5
    here, there = sum_units(array[kept]), sum_units(keep(array)[kept])
    assert here.num_rows == there.num_rows == 7
    assert there.total.dtype == np.float64
    np.testing.assert_allclose(there.total, here.total, rtol=0, atol=1e-6)


class Value:
    """Stands in for a tensor: tells how often it is copied."""

    def __init__(self) -> None:
        self.num_copies = 0

    def numpy(self) -> NDArray[Any]:
        self.num_copies += 1
        if self.num_copies > 1:
            raise RuntimeError("CUDA failure 700")
        return np.arange(5)


def test_an_output_comes_to_the_host_once_for_all_its_sequences() -> None:
    held = Held(value := Value())
    residents = [Resident(held=held, rows=np.array(rows), graphs={}) for rows in ([0, 1], [2, 3, 4])]
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda resident=resident: found.append(resident.fetch().tolist()))
        for resident in residents * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [[0, 1]] * 4 + [[2, 3, 4]] * 4
    assert value.num_copies == 1


def test_a_copy_that_fails_is_the_devices() -> None:
    value = Value()
    value.num_copies = 1
    with pytest.raises(DeviceFailure):
        Held(value).fetch()
