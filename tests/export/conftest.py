"""A model small enough to be traced once and exported often, and what PyTorch says about any model in float64."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from attnserve import bundle
from attnserve.export import export_checkpoint, job
from attnserve.export.trace import trace
from attnserve.models.attention.layer import AttentionConfig
from attnserve.models.checkpoint import load_checkpoint, save_checkpoint
from attnserve.models.config import TransformerConfig
from attnserve.models.transformer import MultiHeadAttention, Transformer
from attnserve.packing import Packed

CARD = {"purpose": "tests", "scores": [0.5]}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """PyTorch float64 on one packed batch, all T rows; captures by kind, per layer."""

    logits: NDArray[np.float64]
    captures: list[dict[str, NDArray[np.float64]]]


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TransformerConfig(
        vocabulary_size=5,
        max_length=12,
        width=8,
        num_heads=2,
        mlp_ratio=2.0,
        attention=(AttentionConfig(variant="expressive"),),
    )
    model = Transformer(config, seed=2)
    with torch.no_grad():
        # Initial weights attend to everything alike: swapped heads would go unnoticed.
        model.layers[0].attention.query.weight *= 6
        model.layers[0].attention.output.weight *= 3
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    save_checkpoint(model, folder, CARD)
    return folder


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path) -> Transformer:
    """Not to be changed: copy it."""
    return load_checkpoint(small_checkpoint).model


@pytest.fixture(scope="session")
def small_graph(small_model: Transformer) -> onnx.ModelProto:
    """`small_model` as it was traced. Not to be changed: copy it."""
    return trace(copy.deepcopy(small_model))


@pytest.fixture
def traced_before(small_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of `small_checkpoint` take the graph that is there instead of tracing it again."""
    monkeypatch.setattr(job, "trace", lambda model: copy.deepcopy(small_graph))


@pytest.fixture(scope="session")
def small_bundle(
    small_checkpoint: Path, small_graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Not to be written to: copy it."""
    place = tmp_path_factory.mktemp("repository") / "small" / "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "trace", lambda model: copy.deepcopy(small_graph))
        export_checkpoint(small_checkpoint, place)
    return place


@pytest.fixture
def changed_bundle(small_bundle: Path, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """Copy `small_bundle`, change its graph, and make its hashes agree."""

    def make(change: Callable[[onnx.ModelProto], None]) -> Path:
        folder = Path(shutil.copytree(small_bundle, tmp_path / "changed" / "1"))
        graph = onnx.load(folder / bundle.MODEL_FILE)
        change(graph)
        onnx.save(graph, folder / bundle.MODEL_FILE)
        manifest = bundle.read_manifest(folder)
        manifest.files.update(bundle.hash_files(folder))
        bundle.write_manifest(folder, manifest)
        return folder

    return make


@pytest.fixture(scope="session")
def ask_torch() -> Callable[..., Truth]:
    """`ask_torch(model, packed, head_scale)`: a float64 forward pass, everything recorded on its way."""
    return _ask_torch


@torch.no_grad()
def _ask_torch(model: Transformer, packed: Packed, head_scale: NDArray[np.float32] | None = None) -> Truth:
    oracle = copy.deepcopy(model).double()
    arrays = (packed.tokens, packed.positions, packed.slots, np.arange(len(packed.tokens)))
    scale = None if head_scale is None else torch.from_numpy(head_scale).double()
    with _recording(oracle) as recorded:
        output = oracle(*(torch.from_numpy(array) for array in arrays), scale)
    captures = []
    layers = [module for module in oracle.modules() if isinstance(module, MultiHeadAttention)]
    for layer, hidden, seen in zip(layers, output.hidden, recorded, strict=True):
        value = seen.pop("value")
        projection = layer.output.weight.unflatten(1, (layer.num_heads, -1))
        norm = torch.einsum("dhv,thv->thd", projection, value).norm(dim=-1)
        captures.append({**seen, "hidden": hidden, "value_norm": norm})
    return Truth(
        logits=output.logits.numpy(),
        captures=[{kind: tensor.numpy() for kind, tensor in layer.items()} for layer in captures],
    )


@contextmanager
def _recording(model: Transformer) -> Iterator[list[dict[str, torch.Tensor]]]:
    recorded: list[dict[str, torch.Tensor]] = []
    for layer in (module.attention for module in model.modules() if isinstance(module, MultiHeadAttention)):
        seen: dict[str, torch.Tensor] = {}
        recorded.append(seen)

        def attend(query, key, value, slots, layer=layer, seen=seen, inner=layer.attend):
            seen |= {"query": query, "key": key, "value": value}
            return inner(query, key, value, slots)

        def measure(*arguments, seen=seen, inner=layer.measure):
            seen["metric"] = inner(*arguments)
            return seen["metric"]

        layer.attend = attend
        if layer.measure is not None:
            layer.measure = measure
    yield recorded


@pytest.fixture(scope="session")
def make_sequences() -> Callable[..., list[NDArray[np.int64]]]:
    """`make_sequences(lengths, vocabulary_size)`: seeded tokens."""

    def make(lengths: Sequence[int], vocabulary_size: int) -> list[NDArray[np.int64]]:
        generator = np.random.default_rng(list(lengths))
        return [generator.integers(0, vocabulary_size, length) for length in lengths]

    return make
