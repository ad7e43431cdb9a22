"""Files of a graph: large weights beside it, and what strangers must not find in it."""

import copy
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from attnserve.bundle import MODEL_DATA_FILE, MODEL_FILE, BundleError, hash_file, read_manifest, verify_files
from attnserve.cli import main
from attnserve.export.attach import attach_bodies, strip_metadata
from attnserve.export.graph import inline_bodies
from attnserve.golden import read_golden, replay
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[False, True], ids=["bodies", "portable"])
def external(request: pytest.FixtureRequest, export_tiny: Any) -> Path:
    """A bundle whose weights lie beside the graph. Not to be written to: copy it."""
    return export_tiny(portable=request.param, max_inline_bytes=2000)


def test_large_weights_lie_beside_the_graph_and_are_listed(external: Path, bundles: Path) -> None:
    inline = bundles / "tiny" / "1"
    assert {path.name for path in external.iterdir()} == {path.name for path in inline.iterdir()} | {MODEL_DATA_FILE}
    assert [path.name for path in (external / "weights").glob("*.data")] == []
    manifest = read_manifest(external)
    assert manifest.files[MODEL_DATA_FILE] == hash_file(external / MODEL_DATA_FILE)
    graph = onnx.load(external / MODEL_FILE, load_external_data=False).graph
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    # By name and nothing else: a path would lead to where it was written.
    assert {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"} == {
        MODEL_DATA_FILE
    }
    assert all(not tensor.raw_data for tensor in outside)
    assert sum(np.prod(tensor.dims) * 4 for tensor in outside) <= (external / MODEL_DATA_FILE).stat().st_size


def test_whoever_may_read_the_graph_may_read_its_weights(external: Path) -> None:
    # A service often runs as another user than the export did.
    modes = {os.stat(external / name).st_mode & 0o777 for name in (MODEL_FILE, MODEL_DATA_FILE, "golden.npz")}
    assert len(modes) == 1


def test_it_answers_as_golden_says_wherever_it_lies(external: Path, bundles: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(external, tmp_path / "elsewhere" / "1"))
    runtime, inline = Runtime(moved, num_threads=1), Runtime(bundles / "tiny" / "1", num_threads=1)
    report, expected = replay(runtime, read_golden(moved)), replay(inline, read_golden(bundles / "tiny" / "1"))
    assert report.passed
    assert report.logits == pytest.approx(expected.logits, rel=0.5)
    assert report.certificate.logits.allowed == expected.certificate.logits.allowed


def test_damaged_or_missing_weights_are_named(external: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(external, tmp_path / "damaged"))
    manifest, path = read_manifest(folder), folder / MODEL_DATA_FILE
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{MODEL_DATA_FILE}: expected sha256"):
        Runtime(folder)
    path.unlink()
    with pytest.raises(BundleError, match=rf"{MODEL_DATA_FILE}: listed in the manifest, but missing"):
        Runtime(folder)
    path.write_bytes(data)
    del manifest.files[MODEL_DATA_FILE]
    with pytest.raises(BundleError, match=rf"{MODEL_DATA_FILE}: not listed in the manifest"):
        verify_files(folder, manifest)


def test_no_path_of_this_machine_is_in_any_of_its_files(external: Path, checkpoint: Path) -> None:
    paths = [ROOT, sysconfig.get_path("purelib"), checkpoint, external.parent, Path.home()]
    needles = [str(path).encode() for path in paths if len(str(path)) > 1]
    needles += [b"site-packages", b".tmp-", b"attnserve/export", b"export/bodies", b'.py"', b"torch.nn"]
    for path in external.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [needle for needle in needles if needle in data], path.name


def test_check_reads_them(external: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(external)]) == 0
    assert "within the certificate" in capsys.readouterr().out


def test_the_same_weights_are_the_same_bytes(external: Path, export_tiny: Any) -> None:
    again = export_tiny(portable=read_manifest(external).portable, max_inline_bytes=2000)
    assert read_manifest(again).files == read_manifest(external).files


def test_a_bound_is_a_bound(export_tiny: Any, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnserve.export.build.verify", lambda *_: read_proof())
    num_bytes = sum(len(tensor.raw_data) for tensor in onnx.load(bundles / "tiny" / "1" / MODEL_FILE).graph.initializer)
    assert not (export_tiny(max_inline_bytes=num_bytes) / MODEL_DATA_FILE).exists()
    assert (export_tiny(max_inline_bytes=num_bytes - 1) / MODEL_DATA_FILE).exists()


def read_proof() -> Any:
    from attnserve.export.verify import Verified

    return Verified(table="", logits=0.0, maps=0.0, reference_logits=0.0)


def test_inlining_keeps_every_number_and_leaves_the_graph_it_was_given(tiny_graph: onnx.ModelProto) -> None:
    graph = copy.deepcopy(tiny_graph)
    attach_bodies(graph)
    strip_metadata(graph)
    before = graph.SerializeToString(deterministic=True)
    inlined = inline_bodies(graph)
    assert graph.SerializeToString(deterministic=True) == before
    assert list(inlined.graph.initializer) == list(graph.graph.initializer)
    assert max(len(tensor.raw_data) for tensor in inlined.graph.initializer) > 1024
    assert inline_bodies(graph).SerializeToString(deterministic=True) == inlined.SerializeToString(deterministic=True)
