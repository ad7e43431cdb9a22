"""The elliptical metric beyond the conformance grid: long sequences, every head size, and equality to the last bit."""

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from attnserve.models.attention import elliptical_metric
from tests.conformance.cases import segments_of, slots_of
from tests.conformance.implementations import (
    KERNELS,
    Feeds,
    Implementation,
    as_type,
    one_node_model,
    open_in_onnx_runtime,
    run_op,
)
from tests.kernels.library import build_library

OP = "EllipticalMetric"

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda one: one.name)
every_attribute = pytest.mark.parametrize(
    "attributes", [{"prefix": prefix, "mean": mean} for prefix in (0, 1) for mean in (0, 1)], ids=str
)


def make_feeds(lengths: tuple[int, ...], size: int, dtype: type[np.floating] = np.float32) -> dict[str, NDArray]:
    random = np.random.default_rng(size)
    value, previous = random.standard_normal((2, sum(lengths), 3, size))
    return as_type({"value": value, "previous_value": previous, "slots": slots_of(lengths)}, dtype)


def oracle(feeds: Feeds, attributes: dict[str, int]) -> NDArray[np.float64]:
    scope, scaling = ("sequence", "prefix")[attributes["prefix"]], ("max", "mean")[attributes["mean"]]
    tensors = {name: torch.from_numpy(array) for name, array in as_type(feeds, np.float64).items()}
    return elliptical_metric(**tensors, scope=scope, scaling=scaling).numpy()


@every_kernel
@every_attribute
@pytest.mark.parametrize("size", [1, 3, 16, 31, 64, 100])
def test_every_head_size(kernel: Implementation, attributes: dict[str, int], size: int) -> None:
    feeds = make_feeds((7, 1, 40), size)
    np.testing.assert_allclose(run_op(kernel, OP, feeds, attributes), oracle(feeds, attributes), rtol=1e-6, atol=0)


@every_kernel
@every_attribute
def test_thousands_of_steps_lose_no_digits(kernel: Implementation, attributes: dict[str, int]) -> None:
    feeds = make_feeds((20_000,), 20)
    np.testing.assert_allclose(run_op(kernel, OP, feeds, attributes), oracle(feeds, attributes), rtol=4e-7, atol=0)


@every_kernel
@every_attribute
def test_batch_mates_and_threads_change_nothing_bit_for_bit(kernel: Implementation, attributes: dict[str, int]) -> None:
    lengths = (5, 1, 30)
    feeds = make_feeds(lengths, 20)
    together = run_op(kernel, OP, feeds, attributes)
    for segment, length in zip(segments_of(lengths), lengths, strict=True):
        own = {name: array[segment] for name, array in feeds.items() if name != "slots"}
        assert np.array_equal(
            run_op(kernel, OP, {**own, "slots": np.arange(length)[None]}, attributes), together[segment]
        )
    model = one_node_model(OP, attributes, onnx.TensorProto.FLOAT)
    (threaded,) = open_in_onnx_runtime(model, build_library(), kernel.name, num_threads=3)(feeds)
    assert np.array_equal(threaded, together)
