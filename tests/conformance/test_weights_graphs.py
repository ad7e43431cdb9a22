"""The weights graphs: scores, weights and normalisers of chosen rows, in everything that runs ONNX.

The oracle is PyTorch in float64, as for the bodies.
"""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from attnserve.export.weights import KEY_BLOCK, NORMALISERS, ROWS, WEIGHTS
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.packed import attention_scores
from tests.conformance import reference
from tests.conformance.cases import AttentionCase, attention_cases, segments_of
from tests.conformance.implementations import IMPLEMENTATIONS, Feeds, Implementation, Run, as_type

WEIGHTED = {variant.weighting: variant for variant in reversed(VARIANTS.values())}

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda one: one.name)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTED)
every_case = pytest.mark.parametrize(
    ("weighting", "case"),
    [
        pytest.param(weighting, case, id=f"{weighting}: {case.name}")
        for weighting in WEIGHTED
        for case in attention_cases(weighting)
    ],
)


@cache
def open_graph(implementation: Implementation, weighting: str, kind: str) -> Run:
    model = {"weights": WEIGHTS, "normaliser": NORMALISERS, "rows": ROWS}[kind][weighting].to_model_proto()
    onnx.checker.check_model(model, full_check=True)
    return implementation.open(model)


def run(implementation: Implementation, weighting: str, feeds: Feeds) -> dict[str, NDArray[np.float32]]:
    """Normaliser [H, Q], scores and weights [H, Q, K], and the weights that the graph of rows makes in one."""
    (normaliser,) = open_graph(implementation, weighting, "normaliser")(
        {name: array for name, array in feeds.items() if name != "epsilon"}
    )
    scores, weights = open_graph(implementation, weighting, "weights")({**feeds, "normaliser": normaliser})
    (rows,) = open_graph(implementation, weighting, "rows")(feeds)
    return {"normaliser": normaliser, "scores": scores, "weights": weights, "rows": rows}


def oracle(weighting: str, feeds: Feeds) -> dict[str, NDArray[np.float64]]:
    """The same from PyTorch in float64, for these very numbers."""
    tensors = {name: torch.from_numpy(np.atleast_1d(array)) for name, array in as_type(feeds, np.float64).items()}
    softcap, scale, epsilon = (tensors[name].item() for name in ("softcap", "scale", "epsilon"))
    scores = attention_scores(tensors["query"], tensors["key"], scale=scale, softcap=softcap)
    column = torch.arange(scores.shape[-1])
    allowed = (column >= tensors["first_key"][:, None]) & (column <= tensors["last"][:, None])
    if weighting == "softmax":
        normaliser = scores.masked_fill(~allowed, -torch.inf).logsumexp(-1)
    else:
        normaliser = torch.where(allowed, scores**2 / (1 + scores**2), 0.0).sum(-1)
    weights = WEIGHTED[weighting].weigh(scores, allowed, epsilon=epsilon)
    found = {"normaliser": normaliser, "scores": scores, "weights": weights, "rows": weights}
    return {name: tensor.numpy() for name, tensor in found.items()}


def random_feeds(num_keys: int, *, num_rows: int = 6, gain: float = 1.0, softcap: float = 0.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(num_keys)
    first_key = random.integers(0, num_keys, num_rows)
    feeds = {
        "query": gain * random.standard_normal((2, num_rows, 4)),
        "key": random.standard_normal((2, num_keys, 4)),
        "first_key": first_key,
        "last": random.integers(first_key, num_keys),
        "scale": np.array(0.5),
        "softcap": np.array(softcap),
        "epsilon": np.array(0.0),
    }
    # Everything, and the last key alone.
    feeds["first_key"][:2] = [0, num_keys - 1]
    feeds["last"][:2] = num_keys - 1
    return as_type(feeds, np.float32)


def assert_agrees(weighting: str, feeds: Feeds, implementation: Implementation) -> dict[str, NDArray[np.float32]]:
    """Compare with the oracle, and return what was compared."""
    answer, expected = run(implementation, weighting, feeds), oracle(weighting, feeds)
    for name, array in answer.items():
        assert array.dtype == np.float32
        # Large numbers are rounded where they are.
        atol = implementation.tolerance * max(1, abs(expected[name]).max())
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=atol, err_msg=name)
    column = np.arange(feeds["key"].shape[1])
    hidden = (column < feeds["first_key"][:, None]) | (column > feeds["last"][:, None])
    for name in ("weights", "rows"):
        assert (answer[name][:, hidden] == 0).all()
    return answer


@every_implementation
@every_case
def test_the_grid_has_the_same_weights_here(
    weighting: str, case: AttentionCase, implementation: Implementation
) -> None:
    group = case.query.shape[1] // case.key.shape[1]
    expected = reference.weights_of(case, weighting)
    for segment, length, weights in zip(segments_of(case.lengths), case.lengths, expected, strict=True):
        seen = [reference.keys_seen(step, length, causal=case.causal, window=case.window) for step in range(length)]
        feeds = {
            "query": case.query[segment].swapaxes(0, 1),
            "key": case.key[segment].repeat(group, axis=1).swapaxes(0, 1),
            "first_key": np.array([keys[0] for keys in seen]),
            "last": np.array([keys[-1] for keys in seen]),
            "scale": np.array(case.scale),
            "softcap": np.array(case.softcap),
            "epsilon": np.array(case.epsilon),
        }
        answer = assert_agrees(weighting, as_type(feeds, np.float32), implementation)
        # Inputs are rounded to float32 here, and scores of 300 carry that into the weights.
        tolerance = 1e-3 if "large" in case.name else 1e-5
        np.testing.assert_allclose(answer["weights"], weights, rtol=0, atol=tolerance)
        np.testing.assert_allclose(answer["rows"], weights, rtol=0, atol=tolerance)


@every_implementation
@every_weighting
@pytest.mark.parametrize("num_keys", [1, 2, KEY_BLOCK - 1, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK + 300])
@pytest.mark.parametrize("softcap", [0.0, 2.5])
def test_keys_come_in_any_number_of_blocks(
    num_keys: int, softcap: float, weighting: str, implementation: Implementation
) -> None:
    answer = assert_agrees(weighting, random_feeds(num_keys, softcap=softcap), implementation)
    np.testing.assert_allclose(answer["weights"].sum(-1), 1, rtol=0, atol=implementation.tolerance)


@every_implementation
@every_weighting
def test_the_largest_score_may_be_in_any_block(weighting: str, implementation: Implementation) -> None:
    # A softmax over blocks rescales what it has whenever it meets a larger score.
    feeds = random_feeds(3 * KEY_BLOCK, gain=5.0)
    for block in range(3):
        key = feeds["key"].copy()
        key[:, block * KEY_BLOCK + 7] *= 30
        assert_agrees(weighting, {**feeds, "key": key}, implementation)


@every_implementation
@every_weighting
@pytest.mark.parametrize("num_keys", [5, 2 * KEY_BLOCK + 1])
def test_rows_without_allowed_keys_are_all_zero(num_keys: int, weighting: str, implementation: Implementation) -> None:
    feeds = random_feeds(num_keys)
    feeds["first_key"][2:4] = [num_keys - 1, 1]
    feeds["last"][2:4] = [num_keys - 2, 0]
    answer = run(implementation, weighting, feeds)
    assert (answer["weights"][:, 2:4] == 0).all()
    expected = -np.inf if weighting == "softmax" else 0
    assert (answer["normaliser"][:, 2:4] == expected).all()
    # Their neighbours are none the worse.
    others = [0, 1, 4, 5]
    np.testing.assert_allclose(
        answer["weights"][:, others],
        oracle(weighting, feeds)["weights"][:, others],
        rtol=0,
        atol=implementation.tolerance,
    )


@every_implementation
def test_epsilon_and_zero_scores_in_the_row_sum(implementation: Implementation) -> None:
    feeds = random_feeds(9)
    feeds["query"][:, 3] = 0
    answer = assert_agrees("expressive", feeds, implementation)
    assert (answer["weights"][:, 3] == 0).all()
    assert (answer["normaliser"][:, 3] == 0).all()
    feeds["epsilon"] = np.array(0.5, np.float32)
    lowered = assert_agrees("expressive", feeds, implementation)
    assert (lowered["weights"].sum(-1) < 0.99).all()
    # Epsilon is the weights' own: a normaliser kept from before serves any.
    assert np.array_equal(lowered["normaliser"], answer["normaliser"])


@every_implementation
@every_weighting
@pytest.mark.parametrize("gain", [300.0, 1e6, 1e12, 1e25])
def test_huge_scores_have_weights_between_0_and_1(weighting: str, gain: float, implementation: Implementation) -> None:
    feeds = random_feeds(KEY_BLOCK + 300, gain=gain)
    # What rounds a score of 1e12 by one unit in the last place turns its weight in a softmax from 1 to 0.
    if weighting == "expressive":
        assert_agrees(weighting, feeds, implementation)
    # A product of one row is summed in another order than that of six, from which the normaliser is.
    answer = run(implementation, weighting, feeds)
    for row in range(6):
        one = {**rows_of(feeds, [row]), "normaliser": answer["normaliser"][:, [row]]}
        _, weights = open_graph(implementation, weighting, "weights")(one)
        assert ((weights >= 0) & (weights <= 1)).all()
    assert ((answer["rows"] >= 0) & (answer["rows"] <= 1)).all()


@every_implementation
@every_weighting
def test_rows_may_be_asked_for_in_any_order(weighting: str, implementation: Implementation) -> None:
    feeds = random_feeds(KEY_BLOCK + 3, num_rows=9)
    everything = run(implementation, weighting, feeds)
    for rows in ([4], [8, 0, 0, 3]):
        for name, array in run(implementation, weighting, rows_of(feeds, rows)).items():
            np.testing.assert_allclose(array, everything[name][:, rows], rtol=1e-5, atol=implementation.tolerance)


def rows_of(feeds: Feeds, rows: list[int]) -> dict[str, np.ndarray]:
    """The feeds for these query rows alone."""
    chosen = {"query": feeds["query"][:, rows], "first_key": feeds["first_key"][rows], "last": feeds["last"][rows]}
    return {**feeds, **chosen}
