"""The outputs for the likeliest entries: what they are of any logits, and bundles that have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from attnserve.bundle import (
    LOGITS,
    MODEL_FILE,
    NORMALISER,
    TOP,
    TOP_IDS,
    TOP_LOGITS,
    hash_files,
    read_manifest,
    write_manifest,
)
from attnserve.export import export_checkpoint
from attnserve.export.top import add_top
from attnserve.export.verify import VerificationError, verify
from attnserve.golden import read_golden
from attnserve.top import MAX_NORMALISER_ERROR, count_wrong
from tests.chosen import copy_with_top
from tests.export.cuda_kernels import list_missing

pytestmark = pytest.mark.export

RIGHT_ERROR = 1e-6


def make_graph(size: int, top_k: int) -> onnx.ModelProto:
    """A model whose logits are what it is given."""
    shape = ["R", size]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["given"], [LOGITS])],
        "given",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (LOGITS, "given")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    add_top(model, top_k)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, logits: np.ndarray) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [LOGITS, *TOP]
    return dict(zip(names, session.run(names, {"given": logits}), strict=True))


def test_they_come_after_the_logits() -> None:
    assert [entry.name for entry in make_graph(8, 3).graph.output] == [LOGITS, *TOP, "given"]


SIZES = [(1, 1), (2, 2), (3, 1), (17, 5), (17, 17), (300, 1), (300, 20), (300, 299), (5000, 20)]


@pytest.mark.parametrize(("size", "top_k"), SIZES)
@pytest.mark.parametrize("scale", [0.1, 5.0, 1e8, 3e37])
def test_they_are_those_of_the_logits(size: int, top_k: int, scale: float) -> None:
    model, random = make_graph(size, top_k), np.random.default_rng(0)
    for logits in (random.normal(size=(5, size)), random.integers(-2, 3, (5, size))):
        outputs = run(model, (logits * scale).astype(np.float32))
        assert count_wrong(outputs, settles_ties=True) == 0
        assert outputs[TOP_IDS].dtype == np.int64
        wide = outputs[LOGITS].astype(np.float64)
        truth = np.exp(wide - wide.max(1, keepdims=True)).sum(1)
        np.testing.assert_allclose(outputs[NORMALISER], truth, rtol=RIGHT_ERROR)
    assert RIGHT_ERROR < MAX_NORMALISER_ERROR


@pytest.mark.parametrize(("size", "top_k"), SIZES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_wherever_it_is(size: int, top_k: int, value: float) -> None:
    model, random = make_graph(size, top_k), np.random.default_rng(0)
    logits = random.normal(size=(7, size)).astype(np.float32)
    # One number of the first, some of the next, all of the last.
    spoiled = {0: random.integers(size), 2: random.permutation(size)[: size // 2 + 1], 5: slice(None)}
    for row, where in spoiled.items():
        logits[row, where] = value
    found = run(model, logits)[NORMALISER]
    assert np.isnan(found[list(spoiled)]).all()
    assert np.isfinite(np.delete(found, list(spoiled))).all()


@pytest.mark.parametrize(("size", "top_k"), SIZES)
def test_no_rows_have_none(size: int, top_k: int) -> None:
    outputs = run(make_graph(size, top_k), np.empty((0, size), np.float32))
    assert [outputs[name].shape for name in TOP] == [(0, top_k), (0, top_k), (0,)]


def test_a_row_does_not_depend_on_others() -> None:
    model, logits = make_graph(300, 20), np.random.default_rng(0).normal(size=(9, 300)).astype(np.float32)
    together = run(model, logits)
    for row in range(9):
        alone = run(model, logits[row : row + 1])
        for name in (TOP_IDS, TOP_LOGITS):
            np.testing.assert_array_equal(alone[name][0], together[name][row])
        # Exponentials of a vector register and of what is left over are not the same to the bit.
        np.testing.assert_allclose(alone[NORMALISER][0], together[NORMALISER][row], rtol=RIGHT_ERROR)


def test_another_reader_says_the_same() -> None:
    model, logits = make_graph(300, 20), np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    names = [LOGITS, *TOP]
    found = dict(zip(names, ReferenceEvaluator(model).run(names, {"given": logits}), strict=True))
    assert count_wrong(found, settles_ties=True) == 0


@pytest.mark.parametrize("portable", [False, True])
def test_a_bundle_with_them(export_tiny: Any, bundles: Path, tmp_path: Path, portable: bool) -> None:
    folder = export_tiny(portable=portable, top_k=4)
    manifest = read_manifest(folder)
    assert (manifest.top_k, manifest.portable) == (4, portable)
    assert [tensor.name for tensor in manifest.outputs][:4] == [LOGITS, *TOP]
    # What tests make of a bundle that is there is what an export makes.
    copied = read_manifest(copy_with_top(bundles / "tiny" / "1", tmp_path / "tiny", 4))
    assert copied.outputs == manifest.outputs
    # Nothing of it would be computed beside a GPU.
    assert list_missing(folder / MODEL_FILE) == []


@pytest.mark.parametrize(
    ("top_k", "got"), [(0, "0"), (21, "21"), (-1, "-1"), (True, "True"), (2.0, "2.0"), ("3", "'3'")], ids=repr
)
def test_more_than_there_are_is_refused(checkpoint: Path, tmp_path: Path, top_k: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^top_k: expected an integer from 1 to 20 \(the vocabulary\), got {got}$"):
        export_checkpoint(checkpoint, tmp_path / "tiny" / "1", top_k=top_k)
    assert not (tmp_path / "tiny").exists()


def spoil_values(model: onnx.ModelProto) -> None:
    """Entries are chosen among other numbers than the logits."""
    (node,) = (node for node in model.graph.node if node.op_type == "TopK")
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.5, np.float32), "top.spoiler"))
    model.graph.node.insert(
        list(model.graph.node).index(node), helper.make_node("Mul", [node.input[0], "top.spoiler"], ["top.spoiled"])
    )
    node.input[0] = "top.spoiled"


def spoil_normaliser(model: onnx.ModelProto) -> None:
    """What is added up are no exponentials."""
    (node,) = (node for node in model.graph.node if node.op_type == "Exp" and node.input[0].startswith("top."))
    node.op_type = "Softplus"


@pytest.mark.parametrize("spoil", [spoil_values, spoil_normaliser])
def test_a_spoiled_graph_is_not_published(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[onnx.ModelProto], None]
) -> None:
    folder = copy_with_top(bundles / "tiny" / "1", tmp_path / "tiny", 4)
    model = onnx.load(folder / MODEL_FILE)
    spoil(model)
    onnx.save(model, folder / MODEL_FILE)
    manifest, golden = read_manifest(folder), read_golden(folder)
    manifest.files.update(hash_files(folder))
    write_manifest(folder, manifest)
    with pytest.raises(VerificationError, match="answers the top entries are not those of their logits"):
        verify(folder, golden, manifest)
    # The second reader by itself.
    monkeypatch.setattr("attnserve.export.verify._replay", lambda *_: None)
    with pytest.raises(VerificationError, match="ReferenceEvaluator the top entries are not those of their logits"):
        verify(folder, golden, manifest)
