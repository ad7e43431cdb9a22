"""Half precision: what is float16, the certificate's own rules, what is refused. And every kind in every precision."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from attnserve import bundle, sessions
from attnserve.bundle import BundleError, read_manifest
from attnserve.cli import main
from attnserve.export import export_checkpoint, verify
from attnserve.golden import read_golden, replay, write_golden
from attnserve.models import Transformer
from attnserve.models.checkpoint import CheckpointError, save_checkpoint
from attnserve.packing import pack
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def half(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `bundles` in float16. Not to be written to: copy it."""
    place = tmp_path_factory.mktemp("repository") / "half" / "1"
    export_checkpoint(checkpoint, place, precision="float16")
    return place


@pytest.fixture(scope="module")
def brain(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`small` in bfloat16, exported on a machine without a GPU, whatever this one has; and what was said of it."""
    place = tmp_path_factory.mktemp("repository") / "brain" / "1"
    with pytest.MonkeyPatch.context() as patch:
        blind = "import attnserve.sessions\nattnserve.sessions._has_nvidia_driver = lambda: False\nfrom attnserve.cli"
        patch.setattr(verify, "CHECK", verify.CHECK.replace("from attnserve.cli", blind))
        return place, export_checkpoint(small_checkpoint, place, precision="bfloat16", top_k=3)


def test_weights_and_captures_are_float16_and_nothing_else_is(half: Path) -> None:
    manifest = read_manifest(half)
    assert manifest.certificate.precision == "float16"
    dtypes = {entry.name: entry.dtype for entry in (*manifest.inputs, *manifest.outputs)}
    narrow = {name for name, dtype in dtypes.items() if dtype == "float16"}
    kinds = ("query", "key", "hidden", "metric")
    assert narrow == {name for layer in manifest.layers for kind, name in layer.captures.items() if kind in kinds}
    assert dtypes["logits"] == dtypes["layers.0.value_norm"] == dtypes["head_scale"] == "float32"
    graph = onnx.load(half / bundle.MODEL_FILE).graph
    wide = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert wide == {"head_scale", *(f"layers.{layer}.value_norm.factors" for layer in range(3))}
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert "module.token_embedding.weight" in weights
    assert (half / bundle.MODEL_FILE).stat().st_size < 200_000


def test_the_certificate_is_three_times_pytorchs_own_error(half: Path, bundles: Path) -> None:
    certificate, golden = read_manifest(half).certificate, read_golden(half)
    for deviation, largest in ((certificate.logits, np.abs(golden.logits).max()), (certificate.maps, 1.0)):
        assert deviation.allowed == pytest.approx(3 * max(deviation.reference, 2.0**-10 * largest))
        assert 1e-5 < deviation.measured <= deviation.allowed
    # The truth is the same: float64 of the weights as they were trained.
    exact = read_golden(bundles / "tiny" / "1")
    assert all(np.array_equal(vars(golden)[name], array) for name, array in vars(exact).items())


def test_maps_from_float16_captures_are_within_the_certificate(half: Path) -> None:
    opened, golden = Runtime(half, num_threads=1), read_golden(half)
    manifest, sequence = opened.manifest, golden.sequences[-1]
    steps = golden.map_rows[golden.map_rows >= len(golden.inputs) - len(sequence)] - len(golden.inputs) + len(sequence)
    packed, rows = pack([sequence]), np.arange(len(sequence))
    names = [name for layer in manifest.layers for name in (layer.captures["query"], layer.captures["key"])]
    captured = opened.run(packed, rows, names, capture=rows)
    assert {array.dtype for array in captured.values()} == {np.dtype(np.float16)}
    for index, layer in enumerate(manifest.layers):
        query, key = captured[layer.captures["query"]][steps], captured[layer.captures["key"]]
        weights = opened.weighing.weigh_all(layer, query, key, steps=steps, heads=[0, 1])
        expected = golden.maps[-len(steps) :, index].transpose(1, 0, 2)[..., : len(sequence)]
        assert np.abs(weights - expected).max() <= manifest.certificate.maps.allowed
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=0.1)
        assert (weights[expected == 0] == 0).all()


def test_it_answers_with_other_numbers_than_float32_and_the_same_classes(half: Path, bundles: Path) -> None:
    exact, rounded = (Runtime(folder, num_threads=1) for folder in (bundles / "tiny" / "1", half))
    packed = pack(read_golden(half).sequences)
    rows = np.arange(len(packed.inputs))
    expected, found = (one.run(packed, rows, ["logits"])["logits"] for one in (exact, rounded))
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - expected).max() < 0.1
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


def test_a_class_that_changed_is_never_published(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In truth its two likeliest classes stand the other way round, by more than twice PyTorch's own error.
    folder = Path(shutil.copytree(half, tmp_path / "half"))
    golden, manifest = read_golden(folder), read_manifest(folder)
    second, first = golden.logits[5].argsort()[-2:]
    golden.logits[5, [first, second]] = golden.logits[5, [second, first]]
    margin = golden.logits[5, second] - golden.logits[5, first]
    write_golden(folder, golden)
    loose = dataclasses.replace(manifest.certificate.logits, reference=margin / 3, allowed=1e9)
    certificate = dataclasses.replace(manifest.certificate, logits=loose)
    manifest = dataclasses.replace(manifest, certificate=certificate, files=bundle.hash_files(folder))
    bundle.write_manifest(folder, manifest)
    said = "name another class though the margin is large"
    with pytest.raises(verify.VerificationError, match=said):
        verify.verify(folder, golden, manifest)
    assert main(["check", str(folder)]) == 1
    assert said in capsys.readouterr().out


def overflowing(model: Transformer, part: str) -> Transformer:
    """Beyond 65504, and nothing special in float32."""
    with torch.no_grad():
        if part == "weights":
            model.layers[0].mlp.up.weight[0, 0] = 1e5
        if part == "queries":
            model.layers[0].attention.query.weight.copy_(6e4 * model.layers[0].attention.query.weight.sign())
        if part == "values":
            model.layers[0].attention.output.weight[0] = 6e4
            model.layers[0].attention.value.weight *= 100
    return model


@pytest.mark.parametrize("part", ["weights", "queries", "values"])
def test_what_overflows_float16_is_refused_naming_file_and_precision(
    small_model: Transformer, tmp_path: Path, part: str
) -> None:
    model = overflowing(Transformer(small_model.config, seed=2), part)
    save_checkpoint(model, tmp_path / "checkpoint")
    said = r"^weights: PyTorch's own answer to seeded inputs is not finite in float16"
    with pytest.raises(CheckpointError, match=said):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository" / "hot" / "1", precision="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_bfloat16_says_that_it_was_not_replayed(brain: Any) -> None:
    place, verified = brain
    manifest = read_manifest(place)
    assert (verified.logits, verified.maps) == (None, None)
    assert verified.table == "not replayed in ONNX Runtime: bfloat16 needs a CUDA device, and none can be used here"
    assert 0 < verified.reference_logits <= manifest.certificate.logits.allowed
    assert manifest.certificate.precision == "bfloat16"
    assert manifest.certificate.logits.measured is manifest.certificate.maps.measured is None
    # numpy has no bfloat16, so none goes in or out.
    assert {entry.dtype for entry in (*manifest.inputs, *manifest.outputs)} == {"float32", "int64"}
    weights = {one.name: one.data_type for one in onnx.load(place / bundle.MODEL_FILE).graph.initializer}
    assert weights["module.token_embedding.weight"] == TensorProto.BFLOAT16


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_bfloat16_is_refused_where_there_is_no_gpu(
    brain: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    monkeypatch.setattr(sessions, "_has_nvidia_driver", lambda: False)
    place, _ = brain
    with pytest.raises(BundleError, match=r"bfloat16 needs a CUDA device.*expected --device cuda, or a bundle"):
        Runtime(place, device=device)
    assert main(["check", str(place), "--device", device]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"attnserve: {place / bundle.MODEL_FILE}: bfloat16 needs a CUDA device")
    assert shown.err.count("\n") == 1


def test_the_second_reader_still_stops_a_wrong_bfloat16_graph(brain: Any, tmp_path: Path) -> None:
    place, _ = brain
    folder = Path(shutil.copytree(place, tmp_path / "brain"))
    model = onnx.load(folder / bundle.MODEL_FILE)
    (node,) = (node for node in model.graph.node if node.domain == "attnserve")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    onnx.save(model, folder / bundle.MODEL_FILE)
    manifest = dataclasses.replace(read_manifest(folder), files=bundle.hash_files(folder))
    bundle.write_manifest(folder, manifest)
    with pytest.raises(verify.VerificationError, match="ReferenceEvaluator differs"):
        verify.verify(folder, read_golden(folder), manifest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "portable"),
    [("float16", False), ("float16", True), ("bfloat16", False), ("bfloat16", True), ("int8", True)],
)
def test_every_kind_is_exported_in_every_precision(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, portable: bool
) -> None:
    save_checkpoint(exported.model, tmp_path / "checkpoint")
    place = tmp_path / "kind" / "1"
    verified = export_checkpoint(tmp_path / "checkpoint", place, precision=precision, portable=portable)
    assert 0 < verified.reference_logits <= read_manifest(place).certificate.logits.allowed
    if precision != "bfloat16":
        assert replay(Runtime(place, num_threads=1), read_golden(place)).passed
