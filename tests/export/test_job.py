"""The whole export: what a bundle says of its origin, and that a failure leaves nothing."""

import copy
import datetime
import hashlib
import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import attnserve
from attnserve import bundle
from attnserve.certificate import Certificate
from attnserve.cli import main
from attnserve.export import build, export_checkpoint, graph, job, verify
from attnserve.export.describe import describe_layers, hash_state, warnings_about
from attnserve.export.subject import Subject
from attnserve.golden import Golden, read_golden
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from attnserve.publish import ExportError

pytestmark = pytest.mark.export

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest(bundles: Path) -> bundle.Manifest:
    return bundle.read_manifest(bundles / "tiny" / "1")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_holds_these_files(bundles: Path, small_bundle: Path) -> None:
    assert sorted(files_of(bundles / "tiny")) == [
        "1/golden.npz",
        "1/manifest.json",
        "1/model.onnx",
        "1/weights/expressive.normaliser.onnx",
        "1/weights/expressive.onnx",
        "1/weights/expressive.rows.onnx",
        "1/weights/softmax.normaliser.onnx",
        "1/weights/softmax.onnx",
        "1/weights/softmax.rows.onnx",
    ]
    # Only of weightings in use.
    assert not [name for name in files_of(small_bundle) if "softmax" in name]


def test_provenance_names_files_and_versions(checkpoint: Path, manifest: bundle.Manifest) -> None:
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in files_of(checkpoint).items()}
    assert manifest.provenance.checkpoint_sha256 == expected
    assert expected.keys() == {"config.json", "model.safetensors", "card.json"}
    assert manifest.provenance.versions["attnserve"] == attnserve.__version__
    assert {"torch", "onnx", "onnxscript", "numpy"} < manifest.provenance.versions.keys()
    assert any(name.startswith("onnxruntime") for name in manifest.provenance.versions)
    created = datetime.datetime.fromisoformat(manifest.provenance.created)
    assert created.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(hours=1)


def test_the_manifest_describes_the_checkpoint(checkpoint: Path, manifest: bundle.Manifest) -> None:
    config = load_checkpoint(checkpoint).model.config
    assert manifest.labels == config.labels
    assert (manifest.vocabulary_size, manifest.max_length) == (20, 320)
    assert (manifest.task, manifest.causal, manifest.warnings) == ("next_token", True, ())
    assert manifest.card == json.loads((checkpoint / "card.json").read_text())
    assert [layer.variant for layer in manifest.layers] == ["dot_product", "expressive", "elliptical"]
    assert [layer.op for layer in manifest.layers] == [
        "DotProductAttention",
        "ExpressiveAttention",
        "DotProductAttention",
    ]
    assert [layer.weighting for layer in manifest.layers] == ["softmax", "expressive", "softmax"]
    assert [layer.epsilon for layer in manifest.layers] == [0.0, 0.001, 0.0]
    assert [(layer.scope, layer.scaling) for layer in manifest.layers] == [(None, None)] * 2 + [("prefix", "mean")]


def test_the_certificate_was_kept(manifest: bundle.Manifest) -> None:
    for deviation in (manifest.certificate.logits, manifest.certificate.maps):
        assert deviation.measured is not None
        assert 0 < deviation.measured <= deviation.allowed
        assert deviation.reference > 0


def test_hashes_are_of_every_other_file(bundles: Path, manifest: bundle.Manifest) -> None:
    files = files_of(bundles / "tiny" / "1")
    del files["manifest.json"]
    assert manifest.files == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_no_path_of_this_machine_is_in_any_file(bundles: Path, checkpoint: Path, small_bundle: Path) -> None:
    paths = [ROOT, sysconfig.get_path("purelib"), checkpoint, bundles, Path.home(), small_bundle.parent]
    needles = [str(path).encode() for path in paths if len(str(path)) > 1]
    needles += [b"site-packages", b".tmp-", b"attnserve/export", b"export/bodies", b'.py"']
    for folder in (bundles, small_bundle):
        for name, data in files_of(folder).items():
            found = [needle for needle in needles if needle in data]
            assert not found, name
    # The archive is compressed: what is in it has to be unpacked to be searched.
    with np.load(small_bundle / "golden.npz") as arrays:
        assert {arrays[name].dtype.kind for name in arrays.files} == {"i", "f"}


def test_the_same_checkpoint_gives_the_same_bundle(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Traced anew, through the command line.
    place = tmp_path / "repository" / "small" / "2"
    assert main(["export", str(small_checkpoint), str(place)]) == 0
    first, second = files_of(small_bundle), files_of(place)
    manifests = [json.loads(files.pop("manifest.json")) for files in (first, second)]
    for document in manifests:
        del document["provenance"]["created"]
    assert first == second
    assert manifests[0] == manifests[1]
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["small"]
    assert [path.name for path in place.parent.iterdir()] == ["2"]
    shown = capsys.readouterr()
    steps = [line.split()[0] for line in shown.out.splitlines()[:5]]
    assert steps == ["load", "graph", "golden", "verify", "publish"]
    assert "within the certificate" in shown.out
    assert "onnx ReferenceEvaluator, logits:" in shown.out
    assert shown.err == ""


def double_the_scale(model: onnx.ModelProto) -> onnx.ModelProto:
    (node,) = (node for node in model.graph.node if node.domain == "attnserve")
    (scale,) = (entry for entry in node.attribute if entry.name == "scale")
    scale.f *= 2
    return model


def test_a_wrong_graph_is_never_published(
    small_checkpoint: Path,
    small_graph: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(graph, "trace", lambda subject: double_the_scale(copy.deepcopy(small_graph)))
    assert main(["export", str(small_checkpoint), str(tmp_path / "new" / "repository" / "small" / "1")]) == 1
    shown = capsys.readouterr()
    assert "nothing was published" in shown.err
    assert "OUTSIDE THE CERTIFICATE" in shown.err
    assert "publish" not in shown.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_before")
def test_wrong_golden_is_never_published(
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded = build.record_golden

    def spoil(*arguments: Any, **options: Any) -> tuple[Golden, Certificate]:
        golden, certificate = recorded(*arguments, **options)
        golden.maps[:, :, [0, 1]] = golden.maps[:, :, [1, 0]]
        return golden, certificate

    monkeypatch.setattr(build, "record_golden", spoil)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "aliases.json").write_text('{"active": 7}')
    assert main(["export", str(small_checkpoint), str(tmp_path / "small" / "1")]) == 1
    assert "OUTSIDE THE CERTIFICATE" in capsys.readouterr().err
    assert files_of(tmp_path) == {"small/aliases.json": b'{"active": 7}'}


@pytest.mark.usefixtures("traced_before")
def test_a_second_reader_who_disagrees_stops_it(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "_reference_difference", lambda *arguments: float("nan"))
    assert main(["export", str(small_checkpoint), str(tmp_path / "small" / "1")]) == 1
    assert "ReferenceEvaluator" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize("step", ["build_graph", "save_graph", "record_golden", "verify"])
def test_an_interrupted_export_leaves_nothing(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(small_checkpoint, tmp_path / "small" / "1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_before")
def test_a_full_disk_is_one_line(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(folder: Path, golden: Golden) -> None:
        raise OSError(28, "No space left on device", str(folder / "golden.npz"))

    monkeypatch.setattr(build, "write_golden", fill)
    assert main(["export", str(small_checkpoint), str(tmp_path / "small" / "1")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("attnserve: destination: ")
    assert "No space left on device" in error
    assert list(tmp_path.iterdir()) == []


def refuse_to_load(*arguments: Any) -> None:
    pytest.fail("the destination is looked at before seconds are spent")


@pytest.mark.parametrize("place", ["1", "small/0", "small/v1", "small/01", ".hidden/1"])
def test_a_bad_destination_is_refused_first(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "load_checkpoint", refuse_to_load)
    with pytest.raises(ExportError, match=r"^destination: "):
        export_checkpoint(small_checkpoint, place)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_version_is_refused_and_stays(
    small_checkpoint: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(small_bundle)
    monkeypatch.setattr(job, "load_checkpoint", refuse_to_load)
    with pytest.raises(ExportError, match=r"small/1 exists; versions are never overwritten, choose the next number"):
        export_checkpoint(small_checkpoint, small_bundle)
    assert files_of(small_bundle) == before


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "not json", "no tensors"])
def test_an_unreadable_checkpoint_makes_nothing(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    source = tmp_path / "checkpoint"
    if fault != "missing":
        shutil.copytree(small_checkpoint, source)
    if fault == "empty":
        shutil.rmtree(source)
        source.mkdir()
    if fault == "truncated":
        (source / "model.safetensors").write_bytes((small_checkpoint / "model.safetensors").read_bytes()[:-4])
    if fault == "not json":
        (source / "config.json").write_text("{")
    if fault == "no tensors":
        (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        export_checkpoint(source, tmp_path / "repository" / "small" / "1")
    assert main(["export", str(source), str(tmp_path / "repository" / "small" / "1")]) == 1
    assert capsys.readouterr().err.startswith(f"attnserve: {source}")
    assert not (tmp_path / "repository").exists()


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize("card", ['{"score": NaN}', '{"score": 1e999}', '{"name": "\\ud800"}'])
def test_a_card_that_is_no_json_is_refused(small_checkpoint: Path, tmp_path: Path, card: str) -> None:
    source = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    (source / "card.json").write_text(card)
    with pytest.raises(CheckpointError, match=r"card\.json: cannot be written as JSON"):
        export_checkpoint(source, tmp_path / "repository" / "small" / "1")
    assert not (tmp_path / "repository").exists()


@pytest.mark.usefixtures("traced_before")
def test_a_checkpoint_needs_no_card(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    (source / "card.json").unlink()
    proof = verify.Verified(table="", logits=0.0, maps=0.0, reference_logits=0.0)
    monkeypatch.setattr(build, "verify", lambda *arguments: proof)
    export_checkpoint(source, tmp_path / "small" / "1")
    manifest = bundle.read_manifest(tmp_path / "small" / "1")
    assert manifest.card == {}
    assert manifest.provenance.checkpoint_sha256.keys() == {"config.json", "model.safetensors"}


def config_with(**options: Any) -> TransformerConfig:
    sizes = {"vocabulary_size": 3, "max_length": 4, "width": 4, "num_heads": 2}
    return TransformerConfig(**{**sizes, "attention": (AttentionConfig(),), **options})


def warnings_of(make_subject: Callable[..., Subject], **options: Any) -> tuple[str, ...]:
    subject = make_subject(Transformer(config_with(**options)))
    return warnings_about(describe_layers(subject.layers), subject.interface)


def test_warnings_say_what_a_reader_must_know(make_subject: Callable[..., Subject]) -> None:
    leaky = AttentionConfig(variant="elliptical", scope="sequence-leaky", scaling="max")
    (warning,) = warnings_of(make_subject, attention=(AttentionConfig(), leaky))
    assert warning.startswith("layer 1 estimates its metric from the whole sequence (scope sequence-leaky)")
    (warning,) = warnings_of(make_subject, causal=False)
    assert warning.startswith("bidirectional")
    assert warnings_of(make_subject) == ()
    # What classifies predicts no token that it may have seen.
    classifier = {"task": "classify_sequence", "num_classes": 2, "pooling": "mean", "causal": False}
    assert warnings_of(make_subject, **classifier) == ()


def test_value_norm_is_the_norm_through_the_projection(make_subject: Callable[..., Subject]) -> None:
    model = Transformer(config_with(bias=True))
    (layer,) = make_subject(model).layers
    assert layer.head_projections.shape == (4, 2, 2)
    weight = model.layers[0].attention.output.weight.detach().double().numpy()
    np.testing.assert_array_equal(layer.head_projections[:, 1], weight[:, 2:])


def test_golden_is_readable_where_it_was_written(
    small_bundle: Path, small_model: Transformer, make_subject: Callable[..., Subject]
) -> None:
    golden, certificate = build.record_golden(copy.deepcopy(small_model).double(), make_subject(small_model))
    stored = read_golden(small_bundle)
    assert all(np.array_equal(vars(stored)[name], array) for name, array in vars(golden).items())
    assert bundle.read_manifest(small_bundle).certificate.logits.allowed == certificate.logits.allowed


def test_the_hash_of_a_state_is_of_every_number_name_and_type() -> None:
    def module_of(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2, **options)

    plain = hash_state(module_of())
    assert hash_state(module_of()) == plain
    changed = module_of()
    with torch.no_grad():
        changed.weight[1, 2] += 1e-6
    renamed = nn.Sequential(module_of())
    others = [changed, renamed, module_of(bias=False), module_of().to(torch.bfloat16), module_of().double()]
    assert len({plain, *(hash_state(other) for other in others)}) == 6


def test_a_saved_model_exports_as_the_loaded_one(
    small_model: Transformer, small_checkpoint: Path, tmp_path: Path
) -> None:
    save_checkpoint(small_model, tmp_path / "again", json.loads((small_checkpoint / "card.json").read_text()))
    assert files_of(tmp_path / "again") == files_of(small_checkpoint)
