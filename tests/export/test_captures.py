"""Every capture is the tensor of that name in PyTorch, and `head_scale` silences heads."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attnserve.bundle import HEAD_SCALE, LOGITS
from attnserve.packing import Packed
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export

LENGTHS = (6, 1, 40, 3)


@pytest.fixture(scope="module")
def packed(exported: Any) -> Packed:
    return exported.pack(LENGTHS)


@pytest.fixture(scope="module")
def runtime(exported: Any) -> Runtime:
    return exported.runtime


def all_captures(runtime: Runtime) -> list[tuple[int, str, str]]:
    layers = enumerate(runtime.manifest.layers)
    return [(index, kind, name) for index, layer in layers for kind, name in layer.captures.items()]


def ones(runtime: Runtime) -> np.ndarray:
    return np.ones((len(runtime.manifest.layers), runtime.manifest.num_heads), np.float32)


def test_each_capture_is_what_pytorch_computed(
    exported: Any, runtime: Runtime, packed: Packed, ask_torch: Callable[..., Any]
) -> None:
    truth = ask_torch(exported.model, packed)
    captures = all_captures(runtime)
    rows = np.arange(len(packed.inputs))
    answer = runtime.run(packed, rows, [name for *_, name in captures], capture=rows)
    assert {kind for _, kind, _ in captures} == {"query", "key", "hidden", "value_norm", "metric"}
    for index, kind, name in captures:
        expected = truth.captures[index][kind]
        assert answer[name].shape == expected.shape, name
        np.testing.assert_allclose(answer[name], expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def test_only_layers_with_a_metric_have_one(runtime: Runtime) -> None:
    with_metric = [layer.variant for layer in runtime.manifest.layers if "metric" in layer.captures]
    assert with_metric == ["elliptical"]


@pytest.mark.parametrize("chosen", [[0], [49], [3, 3, 3], [10, 2, 49, 2], []], ids=str)
def test_captured_rows_come_as_asked_for(runtime: Runtime, packed: Packed, chosen: list[int]) -> None:
    names = [name for *_, name in all_captures(runtime)]
    rows, everything = np.array([1], np.int64), np.arange(len(packed.inputs))
    full = runtime.run(packed, rows, names, capture=everything)
    some = runtime.run(packed, rows, names, capture=np.array(chosen, np.int64))
    for name in names:
        assert some[name].shape == (len(chosen), *full[name].shape[1:]), name
        # Not bit for bit: matrix products of other sizes add in another order.
        np.testing.assert_allclose(some[name], full[name][chosen], rtol=1e-5, atol=1e-6, err_msg=name)


def test_captures_leave_the_prediction_alone(runtime: Runtime, packed: Packed) -> None:
    rows = np.arange(len(packed.inputs))
    names = [name for *_, name in all_captures(runtime)]
    plain = runtime.run(packed, rows, [LOGITS])
    captured = runtime.run(packed, rows, [LOGITS, *names], capture=rows)
    np.testing.assert_array_equal(captured[LOGITS], plain[LOGITS])


def test_head_scale_is_one_unless_given(runtime: Runtime, packed: Packed) -> None:
    rows = np.arange(len(packed.inputs))
    default = runtime.run(packed, rows, [LOGITS])
    given = runtime.run(packed, rows, [LOGITS], head_scale=ones(runtime))
    np.testing.assert_array_equal(given[LOGITS], default[LOGITS])
    assert HEAD_SCALE in {entry.name for entry in runtime.session.get_overridable_initializers()}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("heads", [[0], [1], [0, 1]], ids=str)
def test_a_scale_of_zero_takes_a_head_away(
    exported: Any, runtime: Runtime, packed: Packed, ask_torch: Callable[..., Any], layer: int, heads: list[int]
) -> None:
    head_scale = ones(runtime)
    head_scale[layer, heads] = 0
    # By hand, not by `head_scale`: without the columns of its projection a head says nothing.
    silenced = copy.deepcopy(exported.model)
    weight = silenced.layers[layer].attention.output.weight.data.unflatten(1, (runtime.manifest.num_heads, -1))
    weight[:, heads] = 0
    truth = ask_torch(silenced, packed)
    rows = np.arange(len(packed.inputs))
    answer = runtime.run(packed, rows, [LOGITS], head_scale=head_scale)
    np.testing.assert_allclose(answer[LOGITS], truth.logits, rtol=0, atol=5e-5 * np.abs(truth.logits).max())
    assert np.abs(answer[LOGITS] - ask_torch(exported.model, packed).logits).max() > 1e-2


def test_a_scaled_head_changes_nothing_before_it(runtime: Runtime, packed: Packed) -> None:
    rows = np.arange(len(packed.inputs))
    head_scale = ones(runtime)
    head_scale[1, :2] = [0.5, -2]
    captures = all_captures(runtime)
    names = [name for *_, name in captures]
    plain = runtime.run(packed, rows, names, capture=rows)
    scaled = runtime.run(packed, rows, names, capture=rows, head_scale=head_scale)
    for index, kind, name in captures:
        is_before = index < 1 or (index == 1 and kind != "hidden")
        assert np.array_equal(plain[name], scaled[name]) == is_before, name
