"""Beyond the conformance grid: sequences of many tiles and blocks, every head size, and equality to the last bit."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from attnserve.models.attention import VARIANTS
from attnserve.models.attention.packed import attend
from tests.conformance.cases import AttentionCase, attention_case, segments_of
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

OPS = {variant.op: variant for variant in reversed(VARIANTS.values())}
# Around the ends of registers, panels, blocks of 64 queries, tiles of 128 keys and short sequences.
LENGTHS = (1, 9, 33, 64, 65, 127, 128, 129, 255, 256, 257, 300)

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda one: one.name)
every_op = pytest.mark.parametrize("op", OPS)
every_direction = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def feeds_of(case: AttentionCase, dtype: type[np.floating] = np.float32) -> dict[str, NDArray]:
    return as_type({name: getattr(case, name) for name in ("query", "key", "value", "slots")}, dtype)


def attributes_of(case: AttentionCase) -> dict[str, float]:
    return {**case.attributes, "causal": int(case.causal)}


def oracle(op: str, case: AttentionCase, feeds: Feeds) -> NDArray[np.float64]:
    tensors = {name: torch.from_numpy(array) for name, array in as_type(feeds, np.float64).items()}
    return attend(OPS[op].weigh, **tensors, **case.attributes).numpy()


def assert_agrees(kernel: Implementation, op: str, case: AttentionCase, dtype: type[np.floating] = np.float32) -> None:
    feeds = feeds_of(case, dtype)
    output = run_op(kernel, op, feeds, attributes_of(case))
    assert output.dtype == dtype
    rtol = 2**-11 if dtype == np.float16 else 0
    np.testing.assert_allclose(output, oracle(op, case, feeds), rtol=rtol, atol=kernel.tolerance)


@every_kernel
@every_op
@every_direction
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 1},
        {"window": 50},
        {"window": 150},
        {"window": 2**62},
        {"softcap": 2.0},
        {"num_heads": 6, "num_key_heads": 2, "value_size": 9},
        {"gain": 5.0},
    ],
    ids=str,
)
def test_sequences_of_many_tiles(kernel: Implementation, op: str, causal: bool, options: dict[str, float]) -> None:
    assert_agrees(kernel, op, attention_case("many tiles", LENGTHS, causal=causal, **{"head_size": 16, **options}))


@every_kernel
@every_op
@pytest.mark.parametrize("size", [1, 3, 15, 16, 17, 31, 32, 33, 48, 63, 64, 80, 128, 200])
def test_every_head_size(kernel: Implementation, op: str, size: int) -> None:
    for value_size in {size, 8, 65}:
        case = attention_case("head size", (5, 140), causal=True, head_size=size, value_size=value_size, num_heads=1)
        assert_agrees(kernel, op, dataclasses.replace(case, key=case.key[:, :1], value=case.value[:, :1]))


@every_kernel
@every_op
@pytest.mark.parametrize("size", [3, 32, 40])
def test_float16_of_many_tiles(kernel: Implementation, op: str, size: int) -> None:
    case = attention_case("many tiles", LENGTHS, causal=True, head_size=size, value_size=size)
    assert_agrees(kernel, op, case, np.float16)


@every_kernel
@every_op
@every_direction
@pytest.mark.parametrize(
    ("lengths", "size"),
    # The second are more keys and values than are packed at once.
    [(LENGTHS, 24), ((300, 5, 400, 200, 350, 130), 64)],
    ids=["many", "large"],
)
def test_batch_mates_and_threads_change_nothing_bit_for_bit(
    kernel: Implementation, op: str, causal: bool, lengths: tuple[int, ...], size: int
) -> None:
    case = attention_case("bits", lengths, causal=causal, num_heads=4, num_key_heads=2, head_size=size, value_size=size)
    feeds, attributes = feeds_of(case), attributes_of(case)
    together = run_op(kernel, op, feeds, attributes)
    for segment in segments_of(case.lengths):
        own = {name: array[segment] for name, array in feeds.items() if name != "slots"}
        alone = run_op(kernel, op, {**own, "slots": np.arange(len(own["query"]))[None]}, attributes)
        assert np.array_equal(alone, together[segment])
    model = one_node_model(op, attributes, onnx.TensorProto.FLOAT)
    (threaded,) = open_in_onnx_runtime(model, build_library(), kernel.name, num_threads=3)(feeds)
    assert np.array_equal(threaded, together)


@every_kernel
@every_op
@pytest.mark.parametrize("window", [0, 70])
def test_a_prefix_answers_as_it_does_before_what_follows_bit_for_bit(
    kernel: Implementation, op: str, window: int
) -> None:
    # Stronger than that the future changes nothing at equal shapes.
    case = attention_case("prefix", (300,), causal=True, window=window, head_size=20, value_size=20)
    feeds, attributes = feeds_of(case), attributes_of(case)
    whole = run_op(kernel, op, feeds, attributes)
    for length in (1, 8, 63, 64, 100, 128, 129, 256, 257):
        prefix = {name: array[:length] for name, array in feeds.items() if name != "slots"}
        alone = run_op(kernel, op, {**prefix, "slots": np.arange(length)[None]}, attributes)
        assert np.array_equal(alone, whole[:length])


@every_kernel
@every_op
def test_a_number_that_is_none_is_not_hidden(kernel: Implementation, op: str) -> None:
    # And stays with those who see it.
    case = attention_case("not a number", (140, 3), causal=True)
    for name in ("query", "key", "value"):
        feeds = feeds_of(case)
        feeds[name][130, 0, 0] = np.nan
        output = run_op(kernel, op, feeds, attributes_of(case))
        sees = np.zeros(output.shape[:2], bool)
        sees[130 : 131 if name == "query" else 140, 0] = True
        assert np.isnan(output[sees]).any(axis=-1).all()
        assert not np.isnan(output[:130]).any() or name == "value"
        assert not np.isnan(output[:, 1]).any()
        assert not np.isnan(output[140:]).any()
