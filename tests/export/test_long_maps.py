"""Maps of long sequences are PyTorch's, within a certificate that was measured on short ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attnserve.export import export_checkpoint
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.attention.recording import recorded_weights
from attnserve.models.checkpoint import load_checkpoint, save_checkpoint
from attnserve.models.prediction import predict_packed
from attnserve.packing import pack
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export

MAX_LENGTH = 2000
# Around the blocks of rows and of keys, and beyond them.
LENGTHS = (1, 2, 3, 31, 64, 127, 128, 129, 513, 1023, 1024, 1025, 2000)
NUM_ROWS = 96
KINDS = {
    "causal": (
        True,
        (
            AttentionConfig(),
            AttentionConfig(variant="expressive"),
            AttentionConfig(variant="elliptical", scope="prefix", scaling="max"),
        ),
    ),
    "both ways": (
        False,
        (
            AttentionConfig(variant="expressive", epsilon=0.001),
            AttentionConfig(variant="elliptical", scope="sequence", scaling="mean"),
            AttentionConfig(window=40),
        ),
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a bundle of it."""
    causal, layers = KINDS[request.param]
    config = TransformerConfig(
        vocabulary_size=50,
        max_length=MAX_LENGTH,
        width=16,
        num_heads=2,
        causal=causal,
        positions="rotary",
        attention=layers,
    )
    model = Transformer(config, seed=3)
    with torch.no_grad():
        # Initial weights attend to everything alike.
        for block in model.layers:
            block.attention.query.weight *= 4
            block.attention.key.weight *= 4
    folder = tmp_path_factory.mktemp("long")
    save_checkpoint(model, folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "long" / "1")
    return folder


def find_truth(model: Transformer, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """[heads, rows, keys] of every layer."""
    with torch.no_grad(), recorded_weights(model) as layers:
        predict_packed(model, model.config.interface, [ids])
    return [weights[0][:, rows].numpy() for weights in layers]


def test_maps_are_those_of_torch_at_every_length(folder: Path) -> None:
    model = load_checkpoint(folder / "checkpoint").model.double()
    runtime = Runtime(folder / "long" / "1", num_threads=1)
    allowed = runtime.manifest.certificate.maps.allowed
    generator = np.random.default_rng(0)
    worst = 0.0
    for length in LENGTHS:
        ids = generator.integers(0, 50, length)
        rows = np.unique(np.linspace(0, length - 1, NUM_ROWS).round().astype(np.int64))
        names = [layer.captures[kind] for layer in runtime.manifest.layers for kind in ("query", "key")]
        captured = runtime.run(pack([ids]), np.array([length - 1]), names, capture=np.arange(length))
        for layer, expected in zip(runtime.manifest.layers, find_truth(model, ids, rows), strict=True):
            query, key = captured[layer.captures["query"]][rows], captured[layer.captures["key"]]
            found = runtime.weighing.weigh_all(layer, query, key, steps=rows, heads=[0, 1])
            worst = max(worst, np.abs(found - expected).max())
            assert worst <= allowed, (length, layer.variant)
            assert (found[expected == 0] == 0).all()
    # Not by luck: a map of one key is exact.
    assert worst > 0
