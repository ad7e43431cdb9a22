"""Models at the edges of what a config may say: each is exported, proven and checked like any other."""

import json
from pathlib import Path
from typing import Any

import pytest

from attnserve.bundle import read_manifest
from attnserve.cli import main
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.checkpoint import save_checkpoint

pytestmark = [pytest.mark.export, pytest.mark.slow]

PLAIN = AttentionConfig()


def expressive(**options: Any) -> AttentionConfig:
    return AttentionConfig(variant="expressive", **options)


def elliptical(**options: Any) -> AttentionConfig:
    return AttentionConfig(variant="elliptical", **options)


ODD: dict[str, dict[str, Any]] = {
    # Of all but channels: one logit of two that nearly cancel is rounded by more units of its own last place than the
    # certificate counts, on processors that add in another order.
    "one of everything": {
        "vocabulary_size": 1,
        "max_length": 1,
        "width": 4,
        "num_heads": 1,
        "mlp_ratio": 0.5,
        "attention": (PLAIN,),
    },
    # A norm over one channel is 0, and so is every logit.
    "width 1": {"vocabulary_size": 3, "max_length": 300, "width": 1, "num_heads": 1, "attention": (expressive(),)},
    "heads of one channel, without positions": {
        "vocabulary_size": 2,
        "max_length": 2,
        "width": 2,
        "num_heads": 2,
        "positions": "none",
        "attention": (expressive(), elliptical(scope="prefix", scaling="max")),
    },
    "bidirectional": {
        "causal": False,
        "positions": "learned",
        "bias": True,
        "activation": "silu",
        "attention": (expressive(), elliptical(scope="sequence", scaling="max"), PLAIN),
    },
    "leaky": {"attention": (PLAIN, elliptical(scope="sequence-leaky", scaling="mean"))},
    "windows": {
        "positions": "rotary",
        "attention": (
            AttentionConfig(window=3),
            expressive(window=1),
            elliptical(scope="prefix", scaling="mean", window=5),
        ),
    },
    "windows both ways": {
        "causal": False,
        "activation": "gelu_tanh",
        "attention": (AttentionConfig(window=3, softcap=3.0), expressive(window=2)),
    },
    "softcap, epsilon, scale": {
        "activation": "relu",
        "attention": (AttentionConfig(softcap=2.0, scale=2.5), expressive(softcap=0.5, epsilon=0.1)),
    },
    "one class, one step": {
        "task": "classify_sequence",
        "num_classes": 1,
        "pooling": "mean",
        "causal": False,
        "max_length": 1,
        "attention": (expressive(), PLAIN),
    },
    "ids, mean": {
        "task": "classify_sequence",
        "num_classes": 3,
        "pooling": "mean",
        "positions": "sinusoidal",
        "attention": (expressive(), elliptical(scope="prefix", scaling="mean")),
    },
    "one feature, one step, a leading row": {
        "vocabulary_size": None,
        "num_features": 1,
        "task": "classify_sequence",
        "num_classes": 2,
        "pooling": "first",
        "causal": False,
        "max_length": 1,
        "attention": (PLAIN, elliptical(scope="sequence", scaling="max")),
    },
    "features, a class per step": {
        "vocabulary_size": None,
        "num_features": 300,
        "task": "classify_token",
        "num_classes": 2,
        "attention": (AttentionConfig(window=3), expressive()),
    },
    "tied, post-norm, one key head of another size": {
        "tied_embeddings": True,
        "norm": "post",
        "num_key_heads": 1,
        "head_size": 6,
        "positions": "rotary",
        "attention": (PLAIN, expressive(), elliptical(scope="prefix", scaling="max")),
    },
    "window wider than any sequence": {"attention": (AttentionConfig(window=2**31 - 1), expressive(window=40))},
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_it_is_exported_and_checked(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocabulary_size": 7, "max_length": 40, "width": 8, "num_heads": 2}
    save_checkpoint(Transformer(TransformerConfig(**{**sizes, **options}), seed=3), tmp_path / "checkpoint")
    place = tmp_path / "odd" / "1"
    assert main(["export", str(tmp_path / "checkpoint"), str(place)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["check", str(place), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["allowed"]["maps"] > 0
    warnings = read_manifest(place).warnings
    is_leaky = any(layer.scope == "sequence-leaky" for layer in options["attention"])
    is_odd = is_leaky or ("task" not in options and not options.get("causal", True))
    assert bool(warnings) == is_odd
