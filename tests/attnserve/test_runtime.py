"""`Runtime` opens only what it can vouch for, on the device it was told."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attnserve import bundle
from attnserve.bundle import BundleError
from attnserve.golden import read_golden
from attnserve.interrupt import Interrupt, Interrupted
from attnserve.packing import pack
from attnserve.runtime import Runtime
from tests.attnserve.conftest import BUNDLE, rehash


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(BUNDLE, num_threads=1)


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


def test_the_number_of_threads_is_passed_on() -> None:
    assert Runtime(BUNDLE, num_threads=2).session.get_session_options().intra_op_num_threads == 2


def test_no_plan_of_memory_is_kept_for_every_shape_that_ever_came(runtime: Runtime) -> None:
    assert not runtime.session.get_session_options().enable_mem_pattern


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


def test_heads_are_scaled_where_inputs_are_bound(runtime: Runtime) -> None:
    bound = Runtime(BUNDLE, num_threads=1, binds=True)
    packed, rows = pack([np.array([1, 2, 3, 4])]), np.array([3])
    head_scale = np.array([[0, 1], [1, 1], [0.5, 1]], np.float32)
    expected, found = (one.run(packed, rows, ["logits"], head_scale=head_scale)["logits"] for one in (runtime, bound))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - bound.run(packed, rows, ["logits"])["logits"]).max() > 1e-3


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


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_reports_to_nobody_unless_the_operator_says_so(given: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    code = (
        "import os, sys, attnserve.runtime as r; assert 'onnxruntime' not in sys.modules; "
        f"r.Runtime({str(BUNDLE)!r}, num_threads=1); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


@pytest.mark.parametrize("binds", [False, True])
def test_an_interrupted_run_says_so_and_the_next_one_runs(binds: bool, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = Runtime(BUNDLE, num_threads=1, binds=binds)
    packed, rows = pack([np.array([1, 2, 3])]), np.array([2])
    expected = runtime.run(packed, rows, ["logits"])["logits"]
    interrupt = Interrupt()
    np.testing.assert_array_equal(runtime.run(packed, rows, ["logits"], interrupt=interrupt)["logits"], expected)
    interrupt.set()
    with pytest.raises(Interrupted):
        runtime.run(packed, rows, ["logits"], interrupt=interrupt)
    np.testing.assert_array_equal(runtime.run(packed, rows, ["logits"])["logits"], expected)
    # Its end is no error, and nothing for the log.
    assert capfd.readouterr().err == ""


def test_what_fails_without_being_interrupted_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(Exception, match="nowhere"):
        runtime.run(pack([np.array([1])]), np.array([0]), ["nowhere"], interrupt=Interrupt())
