"""What a capture keeps of an answer, what it takes, and what float16 costs."""

import dataclasses

import numpy as np
import pytest

from attnserve.service.captures import capture as module
from attnserve.service.captures.capture import count_bytes, keep_layers, outputs_of
from attnserve.service.job import Answer, LogitsAnswer
from attnserve.service.problems import Invalid
from tests.captures import get_weighing, layer_of, make_capture
from tests.service.conftest import make_layer


@pytest.fixture
def manifest(make_manifest):
    """Two layers of the bundle, the second one elliptical, with grouped keys."""
    layers = (
        dataclasses.replace(layer_of(), captures=make_layer(0).captures),
        dataclasses.replace(layer_of("expressive", num_heads=4, num_key_heads=2), captures=make_layer(1).captures),
    )
    first = dict(layers[0].captures)
    del first["metric"]
    return make_manifest(layers=(dataclasses.replace(layers[0], captures=first), layers[1]))


def draw_answer(manifest, length, *, dtype=np.float32, scale=1.0, extra_rows=3) -> Answer:
    """As a batch gives it: views into arrays that others have rows of too."""
    random = np.random.default_rng(0)
    captures = {}
    for layer in manifest.layers:
        sizes = {
            "query": (layer.num_heads, layer.head_size),
            "key": (layer.num_key_heads, layer.head_size),
            "metric": (layer.num_key_heads, layer.head_size),
            "value_norm": (layer.num_heads,),
        }
        for kind, name in layer.captures.items():
            if kind in sizes:
                kept = np.float32 if kind == "value_norm" else dtype
                array = scale * random.normal(size=(length + extra_rows, *sizes[kind]))
                captures[name] = array.astype(kept)[:length]
    return LogitsAnswer(logits=np.zeros((1, 10), np.float32), captures=captures)


def test_outputs(manifest):
    assert outputs_of(manifest, [1]) == {f"layers.1.{kind}" for kind in ("query", "key", "value_norm", "metric")}
    assert outputs_of(manifest, [0]) == {f"layers.0.{kind}" for kind in ("query", "key", "value_norm")}


def test_what_is_kept(manifest):
    answer = draw_answer(manifest, 12)
    kept, row_error = keep_layers(manifest, get_weighing(), [0, 1], answer, "computed")
    assert row_error is None
    for index, layer in enumerate(manifest.layers):
        names = layer.captures
        np.testing.assert_array_equal(kept[index].query, answer.captures[names["query"]].transpose(1, 0, 2))
        np.testing.assert_array_equal(kept[index].key, answer.captures[names["key"]].transpose(1, 0, 2))
        np.testing.assert_array_equal(kept[index].value_norm, answer.captures[names["value_norm"]].T)
        for array in (kept[index].query, kept[index].key, kept[index].value_norm):
            assert array.flags.c_contiguous
            # Else a capture would keep the whole batch alive.
            assert array.base is None
    assert kept[0].metric is None
    np.testing.assert_array_equal(kept[1].metric, answer.captures["layers.1.metric"][-1])


@pytest.mark.parametrize("store", ["computed", "float16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_memory_is_known_before(manifest, store, dtype):
    length = 12
    certificate = dataclasses.replace(manifest.certificate, precision=np.dtype(dtype).name)
    manifest = dataclasses.replace(manifest, certificate=certificate)
    kept, _ = keep_layers(manifest, get_weighing(), [0, 1], draw_answer(manifest, length, dtype=dtype), store)
    metrics = sum(layer.metric.nbytes for layer in kept.values() if layer.metric is not None)
    normalisers = 4 * length * sum(layer.num_heads for layer in manifest.layers)
    expected = sum(layer.num_bytes for layer in kept.values()) - metrics + normalisers
    assert count_bytes(manifest, [0, 1], length, store) == expected
    assert count_bytes(manifest, [0], length, store) < expected


def test_half_takes_half_and_says_what_it_cost(manifest):
    answer = draw_answer(manifest, 40)
    exact, _ = keep_layers(manifest, get_weighing(), [0, 1], answer, "computed")
    kept, row_error = keep_layers(manifest, get_weighing(), [0, 1], answer, "float16")
    largest = 0.0
    for index, layer in enumerate(manifest.layers):
        assert kept[index].query.dtype == kept[index].key.dtype == np.float16
        np.testing.assert_array_equal(kept[index].query, exact[index].query.astype(np.float16))
        weights = [
            get_weighing().weigh_all(
                layer,
                one.query.transpose(1, 0, 2),
                one.key.transpose(1, 0, 2),
                steps=np.arange(40),
                heads=range(layer.num_heads),
            )
            for one in (exact[index], kept[index])
        ]
        largest = max(largest, np.abs(weights[0] - weights[1]).sum(-1).max() / 2)
    assert row_error.num_rows == 40
    assert row_error.value == pytest.approx(largest, rel=1e-3)
    assert 0 < row_error.value < 0.01


@pytest.mark.parametrize(("max_measured", "num_rows"), [(1, 1), (2 * 6 * 40 * 7, 7), (10**9, 40)])
def test_as_many_rows_are_measured_as_take_a_moment(manifest, monkeypatch, max_measured, num_rows):
    monkeypatch.setattr(module, "MAX_MEASURED", max_measured)
    seen = []
    original = get_weighing().weigh_all

    def weigh_all(*arguments, steps, **options):
        seen.append(steps.tolist())
        return original(*arguments, steps=steps, **options)

    monkeypatch.setattr(get_weighing(), "weigh_all", weigh_all)
    _, row_error = keep_layers(manifest, get_weighing(), [0, 1], draw_answer(manifest, 40), "float16")
    assert row_error.num_rows == num_rows
    for steps in seen:
        assert len(set(steps)) == num_rows
        assert steps == sorted(steps)
        assert steps[-1] == 39
        assert steps[0] < 40 / num_rows


def test_what_float16_cannot_hold_is_refused(manifest):
    answer = draw_answer(manifest, 5, scale=1e6)
    keep_layers(manifest, get_weighing(), [0, 1], answer, "computed")
    with pytest.raises(Invalid, match="store: expected queries and keys that float16 can hold"):
        keep_layers(manifest, get_weighing(), [0, 1], answer, "float16")


def test_a_capture_answers_as_its_forward_pass_did(manifest):
    answer = draw_answer(manifest, 10)
    capture = make_capture(length=10)
    capture.layers, _ = keep_layers(manifest, get_weighing(), [0, 1], answer, "computed")
    again = capture.answer().captures
    for name in outputs_of(manifest, [0, 1]) - {"layers.1.metric"}:
        np.testing.assert_array_equal(again[name], answer.captures[name])


def test_layers_that_were_not_captured_are_named():
    capture = make_capture()
    del capture.layers[0]
    assert capture.choose_layers("all") == [1, 2]
    assert capture.choose_layers([-1, 1]) == [2, 1]
    for wanted in ([0], "0:2", [-3]):
        with pytest.raises(Invalid, match="layers: expected layers that were captured, 1, 2, got 0"):
            capture.choose_layers(wanted)
    with pytest.raises(Invalid, match=r"layers\[0\]: expected an integer from -3 to 2"):
        capture.choose_layers([3])


def test_nothing_of_it_can_be_printed():
    capture = make_capture()
    assert "query" not in repr(capture)
    assert "Input" not in repr(capture)
