"""`Weighing` weighs as the formulas say, in one graph or two, block by block."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from attnserve.bundle import Layer, Manifest, normaliser_file, read_manifest, rows_file, weights_file
from attnserve.export.weights import ROWS
from attnserve.rows import visible_keys
from attnserve.weighing import Weighing

# Of before there were graphs of rows.
OLD_BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
WEIGHTINGS = ("softmax", "expressive")
KINDS = ("rows", "normaliser and weights")


def open_session(graph: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(OLD_BUNDLE)


def open_graphs(kind: str) -> dict[str, onnxruntime.InferenceSession]:
    """The weights graphs of today, or those of bundles that lack the newest."""
    paths = [file(weighting) for weighting in WEIGHTINGS for file in (weights_file, normaliser_file)]
    sessions = {path: open_session(str(OLD_BUNDLE / path)) for path in paths}
    if kind == "rows":
        graphs = {rows_file(weighting): ROWS[weighting].to_model_proto() for weighting in WEIGHTINGS}
        sessions |= {path: open_session(graph.SerializeToString()) for path, graph in graphs.items()}
    return sessions


@pytest.fixture(scope="module", params=KINDS)
def weighing(request: pytest.FixtureRequest) -> Weighing:
    return Weighing(open_graphs(request.param))


def layer_of(manifest: Manifest, weighting: str, **options: Any) -> Layer:
    (layer, *_) = (layer for layer in manifest.layers if layer.weighting == weighting)
    return dataclasses.replace(layer, **{"window": 0, "softcap": 0.0, "epsilon": 0.0, **options})


def weights_by_hand(
    layer: Layer, query: NDArray[Any], key: NDArray[Any], steps: Sequence[int], heads: Sequence[int]
) -> NDArray[np.float64]:
    """[heads, steps, keys] in float64, key by key."""
    weights = np.zeros((len(heads), len(steps), len(key)))
    for place, head in enumerate(heads):
        for row, step in enumerate(steps):
            seen = [other for other in range(len(key)) if not layer.causal or other <= step]
            seen = [other for other in seen if not layer.window or abs(step - other) < layer.window]
            keys = key[seen, head * layer.num_key_heads // layer.num_heads].astype(np.float64)
            scores = layer.scale * keys @ query[row, head].astype(np.float64)
            if layer.softcap:
                scores = layer.softcap * np.tanh(scores / layer.softcap)
            if layer.weighting == "softmax":
                parts, extra = np.exp(scores - scores.max()), 0.0
            else:
                parts, extra = scores**2 / (1 + scores**2), layer.epsilon
            weights[place, row, seen] = parts / (parts.sum() + extra)
    return weights


OPTIONS: tuple[dict[str, Any], ...] = (
    {"causal": True},
    {"causal": False},
    {"causal": True, "window": 1},
    {"causal": True, "window": 3},
    {"causal": False, "window": 3},
    {"causal": False, "window": 2**31 - 1},
    {"causal": True, "softcap": 0.5},
    {"causal": True, "scale": 3.0},
    {"causal": True, "num_heads": 4, "num_key_heads": 2},
)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("steps", [[0], [10], [0, 1, 5, 10], [7, 2, 2]], ids=str)
def test_weights_are_those_of_the_formula(
    weighing: Weighing, manifest: Manifest, weighting: str, options: dict[str, Any], steps: list[int]
) -> None:
    layer = layer_of(manifest, weighting, **options)
    generator = np.random.default_rng(0)
    key = generator.normal(size=(11, layer.num_key_heads, 4)).astype(np.float32)
    query = generator.normal(size=(len(steps), layer.num_heads, 4)).astype(np.float32)
    heads = list(range(layer.num_heads))
    (block,) = weighing.weigh(layer, query, key, steps=np.array(steps), heads=heads, with_scores=True)
    expected = weights_by_hand(layer, query, key, steps, heads)
    assert not np.delete(expected, np.r_[block.columns], axis=2).any()
    expected = expected[:, :, block.columns]
    np.testing.assert_allclose(block.weights, expected, rtol=0, atol=2e-6)
    assert (block.weights[expected == 0] == 0).all()
    assert block.steps.tolist() == steps
    for row, (first, last) in enumerate(zip(block.first_key, block.last_key, strict=True)):
        assert (np.flatnonzero(expected[0, row]) + block.columns.start).tolist() == list(range(first, last + 1))
    grouped = np.repeat(key, layer.num_heads // layer.num_key_heads, axis=1)[block.columns]
    if not layer.softcap:
        scores = layer.scale * np.einsum("qhe,khe->hqk", query, grouped)
        np.testing.assert_allclose(block.scores, scores, rtol=0, atol=1e-5)


def test_scores_are_computed_when_asked_for(weighing: Weighing, manifest: Manifest) -> None:
    key = np.ones((5, 2, 4), np.float32)
    (block,) = weighing.weigh(layer_of(manifest, "softmax"), key, key, steps=np.arange(5), heads=[0])
    assert block.scores is None


def test_epsilon_takes_its_share(weighing: Weighing, manifest: Manifest) -> None:
    layer = layer_of(manifest, "expressive", epsilon=0.5)
    generator = np.random.default_rng(0)
    key, query = generator.normal(size=(2, 6, 2, 4)).astype(np.float32)
    (block,) = weighing.weigh(layer, query, key, steps=np.array(range(6)), heads=[0, 1])
    np.testing.assert_allclose(block.weights, weights_by_hand(layer, query, key, range(6), [0, 1]), atol=2e-6)
    assert (block.weights.sum(-1) < 0.9).all()


@pytest.mark.parametrize("heads", [[1], [1, 0], [0, 0, 1], (1,), range(2)], ids=str)
def test_heads_come_in_the_order_asked_for(weighing: Weighing, manifest: Manifest, heads: Sequence[int]) -> None:
    layer = layer_of(manifest, "softmax")
    generator = np.random.default_rng(0)
    key, query = generator.normal(size=(2, 5, 2, 4)).astype(np.float32)
    (both,) = weighing.weigh(layer, query, key, steps=np.array(range(5)), heads=[0, 1])
    (chosen,) = weighing.weigh(layer, query, key, steps=np.array(range(5)), heads=heads)
    np.testing.assert_allclose(chosen.weights, both.weights[list(heads)], atol=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("window", [0, 4])
def test_blocks_of_rows_add_up_to_the_whole(
    weighing: Weighing, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, weighting: str, rows: int, window: int
) -> None:
    layer = layer_of(manifest, weighting, window=window)
    generator = np.random.default_rng(0)
    key, query = generator.normal(size=(2, 9, 2, 4)).astype(np.float32)
    steps = np.array(range(9))
    (whole,) = weighing.weigh(layer, query, key, steps=steps, heads=[0, 1], with_scores=True)
    assert whole.columns == slice(0, 9)
    # 2 heads of 9 keys.
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", rows * 18)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 1)
    blocks = list(weighing.weigh(layer, query, key, steps=steps, heads=[0, 1], with_scores=True))
    assert len(blocks) == -(-9 // rows)
    for block in blocks:
        for name in ("steps", "first_key", "last_key"):
            assert np.array_equal(getattr(block, name), getattr(whole, name)[block.rows])
        # No key that none of its rows may see.
        assert (block.columns.start, block.columns.stop) == (block.first_key.min(), block.last_key.max() + 1)
        for name in ("scores", "weights"):
            expected = getattr(whole, name)[:, block.rows, block.columns]
            np.testing.assert_allclose(getattr(block, name), expected, rtol=0, atol=1e-6)
    together = weighing.weigh_all(layer, query, key, steps=steps, heads=[0, 1])
    np.testing.assert_allclose(together, whole.weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_more_keys_than_one_block_of_the_graph(weighing: Weighing, manifest: Manifest, weighting: str) -> None:
    layer = layer_of(manifest, weighting)
    generator = np.random.default_rng(0)
    key = generator.normal(size=(2500, 2, 4)).astype(np.float32)
    steps = np.array([0, 1023, 1024, 2047, 2048, 2499])
    query = generator.normal(size=(6, 2, 4)).astype(np.float32)
    weights = weighing.weigh_all(layer, query, key, steps=steps, heads=[0, 1])
    np.testing.assert_allclose(weights, weights_by_hand(layer, query, key, steps.tolist(), [0, 1]), atol=2e-6)


def test_nothing_asked_for_is_nothing_computed(weighing: Weighing, manifest: Manifest) -> None:
    layer = layer_of(manifest, "softmax")
    key = np.ones((5, 2, 4), np.float32)
    assert list(weighing.weigh(layer, key[:0], key, steps=np.empty(0, np.int64), heads=[0])) == []
    assert list(weighing.weigh(layer, key, key, steps=np.array(range(5)), heads=[])) == []


def test_captures_kept_in_float16_are_widened(weighing: Weighing, manifest: Manifest) -> None:
    layer = layer_of(manifest, "expressive")
    key = np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float16)
    (block,) = weighing.weigh(layer, key, key, steps=np.array(range(5)), heads=[0, 1])
    assert block.weights.dtype == np.float32
    np.testing.assert_allclose(block.weights, weights_by_hand(layer, key, key, range(5), [0, 1]), atol=2e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("keys", [slice(4, 9), slice(0, 2), slice(9, 11)], ids=["inside", "before", "beyond"])
def test_a_part_of_a_map_is_that_part_of_the_whole(
    weighing: Weighing, manifest: Manifest, weighting: str, options: dict[str, Any], keys: slice
) -> None:
    layer = layer_of(manifest, weighting, **{**options, "num_heads": 2, "num_key_heads": 2})
    query, key = np.random.default_rng(0).normal(size=(2, 2, 11, 4)).astype(np.float32)
    first, last = visible_keys(layer, np.arange(11), 11)
    normaliser = weighing.normalise(layer, query, key, first=first, last=last)
    rows = slice(3, 7)
    weights = weighing.weigh_part(
        layer,
        np.ascontiguousarray(query[:, rows]),
        np.ascontiguousarray(key[:, keys]),
        np.ascontiguousarray(normaliser[:, rows]),
        first=first[rows] - keys.start,
        last=last[rows] - keys.start,
    )
    expected = weights_by_hand(layer, query.transpose(1, 0, 2), key.transpose(1, 0, 2), range(11), [0, 1])
    np.testing.assert_allclose(weights, expected[:, rows, keys], rtol=0, atol=2e-6)
    assert (weights[expected[:, rows, keys] == 0] == 0).all()


def test_it_can_be_ended_before_any_block(
    weighing: Weighing, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", 1)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 2)
    layer = layer_of(manifest, "softmax", causal=True)
    rows = np.zeros((6, layer.num_heads, 4), np.float32)
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyError

    blocks = weighing.checking(check).weigh(layer, rows, rows, steps=np.arange(6), heads=[0])
    assert next(blocks).rows == slice(0, 2)
    with pytest.raises(KeyError):
        next(blocks)
