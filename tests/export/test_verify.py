"""The proof is made in a process of its own, which sees what this one sees and nothing else."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from attnserve.bundle import Manifest, read_manifest
from attnserve.export import verify
from attnserve.golden import Golden, read_golden

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def golden(small_bundle: Path) -> Golden:
    return read_golden(small_bundle)


@pytest.fixture(scope="module")
def manifest(small_bundle: Path) -> Manifest:
    return read_manifest(small_bundle)


def test_it_measures_what_check_measures_wherever_it_is_started(
    small_bundle: Path, golden: Golden, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither the current folder nor a PYTHONPATH that this process was not started with may be imported from.
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    (tmp_path / "attnserve").mkdir()
    (tmp_path / "attnserve" / "__init__.py").write_text("raise SystemExit('the wrong attnserve')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    verified = verify.verify(small_bundle, golden, manifest)
    certificate = manifest.certificate
    # Another process may find other threads free, and add in another order.
    assert verified.logits == pytest.approx(certificate.logits.measured, rel=0.5)
    assert verified.maps == pytest.approx(certificate.maps.measured, rel=0.5)
    assert 0 < verified.reference_logits <= certificate.logits.allowed
    assert "within the certificate" in verified.table


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('what happened', file=sys.stderr); raise SystemExit(7)", r"ended with 7 .*what happened"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9"),
        ("print('no JSON')", "ended with 0 .*no JSON"),
        ("import torch", r"ended with 1 .*ModuleNotFoundError.*torch"),
    ],
)
def test_a_check_that_breaks_is_reported_with_its_code(
    small_bundle: Path, golden: Golden, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    blocked, _, _ = verify.CHECK.partition("from attnserve.cli")
    monkeypatch.setattr(verify, "CHECK", f"{blocked}\n{code}")
    with pytest.raises(verify.VerificationError, match=f"(?s){said}"):
        verify.verify(small_bundle, golden, manifest)


@pytest.mark.parametrize("name", ["torch", "onnx", "onnxscript"])
def test_what_a_service_does_not_have_is_blocked(name: str) -> None:
    assert f'"{name}"' in verify.CHECK


def test_the_second_reader_reads_bodies(
    changed_bundle: Callable[..., Path], golden: Golden, manifest: Manifest
) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        (body,) = (function for function in model.functions if function.name == "ExpressiveAttention")
        next(node for node in body.node if node.op_type == "Div").op_type = "Mul"

    assert verify._reference_difference(changed_bundle(spoil), golden, manifest) > 1e-3


def test_the_second_reader_notices_nan(changed_bundle: Callable[..., Path], golden: Golden, manifest: Manifest) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        (tensor,) = (entry for entry in model.graph.initializer if entry.name.endswith("unembedding.weight"))
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[0, 0] = np.nan
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    assert verify._reference_difference(changed_bundle(spoil), golden, manifest) == float("inf")


def test_it_leaves_the_bundle_as_it_was(small_bundle: Path) -> None:
    # What the check wrote, such as caches, would be published.
    assert sorted(os.listdir(small_bundle)) == ["golden.npz", "manifest.json", "model.onnx", "weights"]
