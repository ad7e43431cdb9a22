"""`Runtime` opens only what it can vouch for, on the device it was told, and weighs as the formulas say."""

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attnserve import bundle
from attnserve import runtime as module
from attnserve.bundle import BundleError, Layer
from attnserve.golden import read_golden
from attnserve.packing import pack
from attnserve.runtime import DeviceError, Runtime

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
WEIGHTINGS = ("softmax", "expressive")


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(BUNDLE, num_threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def rehash(folder: Path) -> None:
    manifest = bundle.read_manifest(folder)
    manifest.files.clear()
    manifest.files.update(bundle.hash_files(folder))
    bundle.write_manifest(folder, manifest)


def test_a_changed_file_is_never_opened(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(BundleError, match=r"model\.onnx: expected sha256"):
        Runtime(folder)


@pytest.mark.parametrize("name", ["model.onnx", "weights/softmax.onnx", "weights/expressive.normaliser.onnx"])
def test_what_is_no_graph_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("no graph")
    rehash(folder)
    with pytest.raises(BundleError, match=rf"{name}: ONNX Runtime cannot load it"):
        Runtime(folder)


def test_a_graph_of_another_bundle_is_refused(folder: Path) -> None:
    shutil.copy(folder / "weights" / "softmax.onnx", folder / "model.onnx")
    rehash(folder)
    with pytest.raises(BundleError, match=r"model\.onnx: its outputs are not those the manifest names"):
        Runtime(folder)


def test_unknown_devices_are_refused(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"device: expected one of auto, cpu, cuda, got 'tpu'"):
        Runtime(folder, device="tpu")


@pytest.mark.parametrize("has_provider", [True, False])
def test_without_a_driver_auto_is_the_cpu_and_cuda_says_why(
    monkeypatch: pytest.MonkeyPatch, has_provider: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers[not has_provider :])
    monkeypatch.setattr(module, "_has_nvidia_driver", lambda: False)
    opened = Runtime(BUNDLE, device="auto")
    assert opened.device == "cpu"
    assert opened.session.get_providers() == ["CPUExecutionProvider"]
    reason = "this machine has no NVIDIA driver" if has_provider else "install attnserve[gpu]"
    with pytest.raises(DeviceError, match=rf"device: expected a usable CUDA device, got none: .*{re.escape(reason)}"):
        Runtime(BUNDLE, device="cuda")
    assert capfd.readouterr().err == ""


def test_a_session_that_falls_back_silently_is_not_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    # What ONNX Runtime does where a driver is there and CUDA is not: it says nothing and computes on the CPU.
    import onnxruntime

    asked: list[str] = []

    def open_on_the_cpu(path: Path, device: str, *arguments: Any) -> Any:
        asked.append(device)
        return opened(path, "cpu", *arguments)

    opened = module._open
    monkeypatch.setattr(module, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(module, "_open", open_on_the_cpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert Runtime(BUNDLE, device="auto").device == "cpu"
    assert asked[:2] == ["cuda", "cpu"]
    with pytest.raises(DeviceError, match="fell back to the CPU"):
        Runtime(BUNDLE, device="cuda")


def test_the_number_of_threads_is_passed_on() -> None:
    assert Runtime(BUNDLE, num_threads=2).session.get_session_options().intra_op_num_threads == 2


def test_feeds_leave_head_scale_to_its_initialiser(runtime: Runtime) -> None:
    packed = pack([np.array([1, 2])])
    feeds = runtime.feeds(packed, np.array([1]))
    assert feeds.keys() == {"tokens", "positions", "slots", "rows", "capture"}
    assert len(feeds["capture"]) == 0
    ones = np.ones((3, 2), np.float32)
    assert runtime.feeds(packed, np.array([1]), head_scale=ones)["head_scale"] is ones


def test_outputs_come_by_name(runtime: Runtime) -> None:
    packed = pack(read_golden(BUNDLE).sequences[:2])
    names = ["layers.2.metric", "logits", "layers.0.query"]
    answer = runtime.run(packed, np.array([0]), names, capture=np.array([2, 0]))
    assert list(answer) == names
    assert [answer[name].shape for name in names] == [(2, 2, 4), (1, 5), (2, 2, 4)]


def layer_of(runtime: Runtime, weighting: str, **options: Any) -> Layer:
    (layer, *_) = (layer for layer in runtime.manifest.layers if layer.weighting == weighting)
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
    runtime: Runtime, weighting: str, options: dict[str, Any], steps: list[int]
) -> None:
    layer = layer_of(runtime, weighting, **options)
    generator = np.random.default_rng(0)
    key = generator.normal(size=(11, layer.num_key_heads, 4)).astype(np.float32)
    query = generator.normal(size=(len(steps), layer.num_heads, 4)).astype(np.float32)
    heads = list(range(layer.num_heads))
    (block,) = runtime.weigh(layer, query, key, steps=np.array(steps), heads=heads)
    expected = weights_by_hand(layer, query, key, steps, heads)
    np.testing.assert_allclose(block.weights, expected, rtol=0, atol=2e-6)
    assert (block.weights[expected == 0] == 0).all()
    assert block.steps.tolist() == steps
    for row, (first, last) in enumerate(zip(block.first_key, block.last_key, strict=True)):
        assert np.flatnonzero(expected[0, row]).tolist() == list(range(first, last + 1))
    grouped = np.repeat(key, layer.num_heads // layer.num_key_heads, axis=1)
    if not layer.softcap:
        scores = layer.scale * np.einsum("qhe,khe->hqk", query, grouped)
        np.testing.assert_allclose(block.scores, scores, rtol=0, atol=1e-5)


def test_epsilon_takes_its_share(runtime: Runtime) -> None:
    layer = layer_of(runtime, "expressive", epsilon=0.5)
    generator = np.random.default_rng(0)
    key, query = generator.normal(size=(2, 6, 2, 4)).astype(np.float32)
    (block,) = runtime.weigh(layer, query, key, steps=np.array(range(6)), heads=[0, 1])
    np.testing.assert_allclose(block.weights, weights_by_hand(layer, query, key, range(6), [0, 1]), atol=2e-6)
    assert (block.weights.sum(-1) < 0.9).all()


@pytest.mark.parametrize("heads", [[1], [1, 0], [0, 0, 1], (1,), range(2)], ids=str)
def test_heads_come_in_the_order_asked_for(runtime: Runtime, heads: Sequence[int]) -> None:
    layer = layer_of(runtime, "softmax")
    generator = np.random.default_rng(0)
    key, query = generator.normal(size=(2, 5, 2, 4)).astype(np.float32)
    (both,) = runtime.weigh(layer, query, key, steps=np.array(range(5)), heads=[0, 1])
    (chosen,) = runtime.weigh(layer, query, key, steps=np.array(range(5)), heads=heads)
    np.testing.assert_allclose(chosen.weights, both.weights[list(heads)], atol=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("max_numbers", [1, 2 * 9 * 2, 2 * 9 * 4])
def test_blocks_of_rows_add_up_to_one_block(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, weighting: str, max_numbers: int
) -> None:
    layer = layer_of(runtime, weighting, window=4)
    generator = np.random.default_rng(0)
    key, query = generator.normal(size=(2, 9, 2, 4)).astype(np.float32)
    steps = np.array(range(9))
    (whole,) = runtime.weigh(layer, query, key, steps=steps, heads=[0, 1])
    monkeypatch.setattr(module, "MAX_BLOCK_NUMBERS", max_numbers)
    blocks = list(runtime.weigh(layer, query, key, steps=steps, heads=[0, 1]))
    assert len(blocks) == -(-9 // max(1, max_numbers // 18))
    for name in ("steps", "first_key", "last_key"):
        assert np.array_equal(np.concatenate([getattr(block, name) for block in blocks]), getattr(whole, name))
    for name in ("scores", "weights"):
        joined = np.concatenate([getattr(block, name) for block in blocks], axis=1)
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_more_keys_than_one_block_of_the_graph(runtime: Runtime, weighting: str) -> None:
    layer = layer_of(runtime, weighting)
    generator = np.random.default_rng(0)
    key = generator.normal(size=(2500, 2, 4)).astype(np.float32)
    steps = np.array([0, 1023, 1024, 2047, 2048, 2499])
    query = generator.normal(size=(6, 2, 4)).astype(np.float32)
    (block,) = runtime.weigh(layer, query, key, steps=steps, heads=[0, 1])
    np.testing.assert_allclose(block.weights, weights_by_hand(layer, query, key, steps.tolist(), [0, 1]), atol=2e-6)


def test_nothing_asked_for_is_nothing_computed(runtime: Runtime) -> None:
    layer = layer_of(runtime, "softmax")
    key = np.ones((5, 2, 4), np.float32)
    assert list(runtime.weigh(layer, key[:0], key, steps=np.empty(0, np.int64), heads=[0])) == []
    assert list(runtime.weigh(layer, key, key, steps=np.array(range(5)), heads=[])) == []


def test_captures_kept_in_float16_are_widened(runtime: Runtime) -> None:
    layer = layer_of(runtime, "expressive")
    key = np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float16)
    (block,) = runtime.weigh(layer, key, key, steps=np.array(range(5)), heads=[0, 1])
    assert block.weights.dtype == np.float32
    np.testing.assert_allclose(block.weights, weights_by_hand(layer, key, key, range(5), [0, 1]), atol=2e-6)


@pytest.mark.parametrize("with_captures", [False, True])
def test_bound_inputs_and_outputs_give_the_same_numbers(runtime: Runtime, with_captures: bool) -> None:
    bound = Runtime(BUNDLE, num_threads=1, binds=True)
    assert bound.binds
    assert not runtime.binds
    packed = pack([np.array([1, 2, 3, 4]), np.array([0])])
    names = ["logits", *(runtime.manifest.layers[0].captures.values() if with_captures else ())]
    capture = np.arange(5 if with_captures else 0)
    # Twice: what one run leaves behind must not be another's.
    for _ in range(2):
        plain, found = (one.run(packed, np.array([3, 4]), names, capture) for one in (runtime, bound))
        assert list(plain) == list(found)
        for name in names:
            np.testing.assert_array_equal(plain[name], found[name])


@pytest.mark.parametrize("location", ["../secret", "{root}/secret", "weights/../../secret", "missing"])
def test_weights_are_read_from_inside_the_bundle_only(folder: Path, tmp_path: Path, location: str) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    model = onnx.load(folder / bundle.MODEL_FILE)
    tensor = next(entry for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT)
    raw = onnx.numpy_helper.to_array(tensor).tobytes()
    (tmp_path / "secret").write_bytes(raw)
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location.format(root=tmp_path), "length": str(len(raw))}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / bundle.MODEL_FILE).write_bytes(model.SerializeToString())
    # Whoever made the bundle made its hashes too.
    rehash(folder)
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        Runtime(folder, num_threads=1)
