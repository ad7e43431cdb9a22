"""Twins: the same weights under another attention, and what they say of themselves."""

import dataclasses
from pathlib import Path

import pytest
import torch

from attnserve.bundle import read_manifest
from attnserve.cli import main
from attnserve.export.twin import make_twin, place_twins
from attnserve.models.checkpoint import load_checkpoint
from attnserve.models.transformer import Transformer

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Transformer:
    """A layer of each variant."""
    return load_checkpoint(checkpoint).model


@pytest.mark.parametrize("variant", ["dot_product", "expressive"])
def test_weights_stay_and_attention_changes(model: Transformer, variant: str) -> None:
    twin = make_twin(model, variant)
    assert not twin.training
    assert [layer.variant for layer in twin.config.attention] == [variant] * 3
    for ours, theirs in zip(twin.config.attention, model.config.attention, strict=True):
        assert (ours.scale, ours.window, ours.softcap) == (theirs.scale, theirs.window, theirs.softcap)
        # The epsilon of its own attention is that of the model.
        assert ours == theirs or (ours.epsilon, ours.scope, ours.scaling) == (0.0, None, None)
    assert dataclasses.replace(twin.config, attention=model.config.attention) == model.config
    tensors = model.state_dict()
    assert twin.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in twin.state_dict().items())
    (ours, theirs) = (one.predict([[1, 2, 3, 4]])[0] for one in (twin, model))
    assert (ours - theirs).abs().max() > 1e-4


def test_a_model_that_is_its_own_twin(model: Transformer) -> None:
    with pytest.raises(ValueError, match="twin: expected another variant than that of every layer"):
        make_twin(make_twin(model, "expressive"), "expressive")


@pytest.mark.parametrize("variant", ["elliptical", "cosine"])
def test_no_metric_is_made_up(model: Transformer, variant: str) -> None:
    for attempt in (lambda: make_twin(model, variant), lambda: place_twins(Path("repository/tiny/1"), variant)):
        with pytest.raises(ValueError, match=rf"twin: expected one of dot_product, expressive, got '{variant}'"):
            attempt()


def test_both_are_exported_side_by_side(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "tiny" / "7"), "--twin", "dot_product"]) == 0
    first, twin = (read_manifest(tmp_path / name / "7") for name in ("tiny", "tiny-dot-product"))
    assert [layer.variant for layer in first.layers] == ["dot_product", "expressive", "elliptical"]
    assert [layer.variant for layer in twin.layers] == ["dot_product"] * 3
    assert twin.provenance.checkpoint_sha256 == first.provenance.checkpoint_sha256
    assert first.warnings == ()
    (warning,) = twin.warnings
    assert "dot_product attention with the weights of other attention (dot_product, expressive, elliptical)" in warning
    assert capsys.readouterr().out.count("within the certificate") == 2


def test_nothing_is_exported_where_one_of_them_cannot_be(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny-dot-product" / "7").mkdir(parents=True)
    assert main(["export", str(checkpoint), str(tmp_path / "tiny" / "7"), "--twin", "dot_product"]) == 1
    assert "tiny-dot-product/7 exists" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "tiny" / "7"), "--twin", "elliptical"]) == 1
    assert not (tmp_path / "tiny").exists()
