"""Rows, tiles, levels and thumbnails are those of the whole map, in numpy, whatever was computed before."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnserve.service.captures import head as module
from attnserve.service.captures.pyramid import THUMBNAIL, TILE
from attnserve.service.pooling import find_factor
from tests.captures import make_head

OPTIONS = (
    {"causal": True},
    {"causal": False},
    {"causal": True, "window": 70},
    {"causal": False, "window": 9},
    {"causal": True, "softcap": 0.5},
)
WEIGHTINGS = ("softmax", "expressive")
# One tile; trimmed ones; several zooms.
LENGTHS = (1, 40, 256, 300, 700, 1100)


def map_of(head) -> np.ndarray:
    """[N, N] in float64, by the formulas."""
    layer, length = head.layer, len(head.query)
    scores = layer.scale * head.query.astype(np.float64) @ head.key.astype(np.float64).T
    if layer.softcap:
        scores = layer.softcap * np.tanh(scores / layer.softcap)
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = (distance >= 0) if layer.causal else np.ones_like(distance, bool)
    if layer.window:
        seen &= np.abs(distance) < layer.window
    if layer.weighting == "softmax":
        parts = np.exp(scores - scores.max(1, keepdims=True, where=seen, initial=-np.inf)) * seen
    else:
        parts = scores**2 / (1 + scores**2) * seen
    return parts / (parts.sum(1, keepdims=True) + layer.epsilon)


def pool(whole: np.ndarray, factor: int) -> np.ndarray:
    size = -(-len(whole) // factor)
    padded = np.zeros((size * factor, size * factor))
    padded[: len(whole), : len(whole)] = whole
    return padded.reshape(size, factor, size, factor).max((1, 3))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)
    # What may not be seen weighs nothing at all, from near and from afar.
    assert (found[expected == 0] == 0).all()


def check_tiles(head, whole: np.ndarray) -> None:
    for zoom in range(head.pyramid.num_zooms):
        level = pool(whole, head.pyramid.factor(zoom))
        num_tiles = head.pyramid.num_tiles(zoom)
        for y in range(num_tiles):
            for x in range(num_tiles):
                expected = level[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
                assert_close(head.tile(zoom, y, x), expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_tiles_and_thumbnails_are_the_maxima_of_the_map(weighting, options, length):
    head = make_head(length, weighting, **options)
    whole = map_of(head)
    thumbnail = pool(whole, find_factor(length, THUMBNAIL))
    assert_close(head.thumbnail(), thumbnail)
    check_tiles(head, whole)
    head.forget()
    # From another side: of an overview, by a normaliser.
    check_tiles(head, whole)
    assert_close(head.thumbnail(), thumbnail)
    assert max(thumbnail.shape) <= THUMBNAIL


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_are_those_of_the_map(weighting, options):
    head = make_head(300, weighting, **options)
    steps = np.array([299, 0, 17, 17, 256])
    assert_close(head.rows(steps), map_of(head)[steps])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_normalisers_make_weights_of_scores(weighting):
    head = make_head(300, weighting)
    normaliser, whole = head.normaliser(), map_of(head)
    scores = head.layer.scale * head.query.astype(np.float64) @ head.key.astype(np.float64).T
    last = scores[-1]
    expected = np.exp(last - normaliser[-1]) if weighting == "softmax" else last**2 / (1 + last**2) / normaliser[-1]
    np.testing.assert_allclose(expected, whole[-1], rtol=1e-4, atol=1e-7)
    assert head.normaliser() is normaliser


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    length=st.integers(1, 90),
    seed=st.integers(0, 1000),
    window=st.sampled_from([0, 0, 1, 5, 33]),
    causal=st.booleans(),
    weighting=st.sampled_from(WEIGHTINGS),
    sizes=st.tuples(st.sampled_from([4, 16]), st.sampled_from([8, 256]), st.sampled_from([1, 2, 4])),
)
def test_any_size(length, seed, window, causal, weighting, sizes):
    tile, block, direct = sizes
    with pytest.MonkeyPatch.context() as patch:
        # A deep pyramid over a short sequence.
        patch.setattr("attnserve.service.captures.pyramid.TILE", tile)
        patch.setattr(module, "BLOCK_ROWS", block)
        patch.setattr(module, "MAX_DIRECT_FACTOR", direct)
        patch.setattr(module, "MAX_REMEMBERED", 2 * tile)
        patch.setitem(globals(), "TILE", tile)
        head = make_head(length, weighting, seed=seed, window=window, causal=causal)
        check_tiles(head, map_of(head))


def test_float16_is_widened():
    head = make_head(300, dtype=np.float16)
    check_tiles(head, map_of(head))
    assert_close(head.rows(np.array([299])), map_of(head)[[299]])


def test_what_is_remembered_is_counted_and_can_be_forgotten():
    head = make_head(1100)
    empty = head.kept_bytes
    head.tile(head.pyramid.num_zooms - 1, 0, 0)
    assert (head.kept_bytes, head.remembered_bytes) == (empty + 1100 * 4, 0)
    head.tile(0, 0, 0)
    # 275 x 275 squares of 4 x 4, and 138 x 138 of 8 x 8.
    levels = 4 * (275**2 + 138**2)
    assert (head.kept_bytes, head.remembered_bytes) == (empty + 1100 * 4, levels)
    head.thumbnail()
    assert head.remembered_bytes == levels + 4 * 35**2
    head.forget()
    assert (head.kept_bytes, head.remembered_bytes) == (empty + 1100 * 4, 0)


def test_what_many_ask_for_is_computed_once(monkeypatch):
    head = make_head(700)
    computed = []

    def slowly(name):
        original = getattr(head, name)

        def compute(*arguments):
            computed.append(name)
            return original(*arguments)

        return compute

    for name in ("_normalise", "_pool_all"):
        monkeypatch.setattr(head, name, slowly(name))
    barrier = threading.Barrier(4)
    tiles = []

    def ask():
        barrier.wait()
        tiles.append(head.tile(0, 0, 0))
        tiles.append(head.tile(2, 1, 0))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed) == ["_normalise", "_pool_all"]
    assert len(tiles) == 8
