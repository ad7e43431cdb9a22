"""A model small enough to be traced once and exported often, and what PyTorch says about any model in float64."""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from attnserve import bundle
from attnserve.export import export_checkpoint, graph
from attnserve.export.subject import DTYPES, Subject, find_layers
from attnserve.export.trace import trace
from attnserve.interface import Interface
from attnserve.models.attention.layer import Attention, AttentionConfig
from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.checkpoint import load_checkpoint, save_checkpoint
from attnserve.models.config import TransformerConfig
from attnserve.models.transformer import Transformer
from attnserve.packing import Packed, add_leading_row, pack
from attnserve.runtime import Runtime

CARD = {"purpose": "tests", "scores": [0.5]}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """PyTorch float64 on one packed batch, all T rows; captures by kind, per layer."""

    logits: NDArray[np.float64]
    """Of all T rows; with mean pooling of all B sequences."""
    captures: list[dict[str, NDArray[np.float64]]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A module and its bundle, opened."""

    model: nn.Module
    runtime: Runtime

    @property
    def interface(self) -> Interface:
        return self.runtime.manifest

    def pack(self, lengths: Sequence[int]) -> Packed:
        """Seeded sequences of these lengths, leading rows not counted."""
        return pack(sequences_of(self.interface, lengths))


def sequences_of(interface: Interface, lengths: Sequence[int]) -> list[NDArray[Any]]:
    generator = np.random.default_rng(list(lengths))
    if interface.num_features is None:
        return [generator.integers(0, interface.vocabulary_size, length) for length in lengths]
    sizes = [(length, interface.num_features) for length in lengths]
    features = [generator.normal(size=size).astype(np.float32) for size in sizes]
    return [add_leading_row(sequence) for sequence in features] if interface.leading_row else features


def widened_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the int8 weights of a bundle mean, by the names of a state dict."""
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(folder / bundle.MODEL_FILE).graph.initializer}
    rounded = {name: array for name, array in stored.items() if array.dtype == np.int8}
    return {
        name.removeprefix("module."): torch.from_numpy(array * stored[f"{name}.scale"][:, None])
        for name, array in rounded.items()
    }


CLASSIFIER: dict[str, Any] = {
    "vocabulary_size": None,
    "num_features": 5,
    "task": "classify_sequence",
    "num_classes": 4,
    "causal": False,
    "labels": None,
    "bias": True,
    "max_length": 70,
    "attention": (
        AttentionConfig(),
        AttentionConfig(variant="expressive", epsilon=0.001),
        AttentionConfig(variant="elliptical", scope="sequence", scaling="max"),
    ),
}
# What is not in `tiny`: features, no `rows`, rows that are not sent.
KINDS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "mean": {**CLASSIFIER, "pooling": "mean", "positions": "learned", "norm": "post"},
    "leading row": {**CLASSIFIER, "pooling": "first", "num_heads": 4, "num_key_heads": 2, "positions": "rotary"},
    # One table for reading and writing, in int8.
    "int8": {"tied_embeddings": True},
}


@pytest.fixture(scope="session", params=KINDS)
def exported(
    request: pytest.FixtureRequest, checkpoint: Path, bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A bundle of each kind in which every variant has a layer. Not to be changed: copy it."""
    if request.param == "tiny":
        return Exported(model=load_checkpoint(checkpoint).model, runtime=Runtime(bundles / "tiny" / "1", num_threads=1))
    config = load_checkpoint(checkpoint).model.config
    model = Transformer(dataclasses.replace(config, **KINDS[request.param]), seed=3).eval()
    with torch.no_grad():
        for block in model.layers:
            block.attention.query.weight *= 4
            block.attention.key.weight *= 4
    folder = tmp_path_factory.mktemp("kinds")
    save_checkpoint(model, folder / "checkpoint")
    precision = "int8" if request.param == "int8" else "float32"
    export_checkpoint(folder / "checkpoint", folder / "kind" / "1", precision=precision)
    if precision == "int8":
        model.load_state_dict(model.state_dict() | widened_weights(folder / "kind" / "1"))
    return Exported(model=model, runtime=Runtime(folder / "kind" / "1", num_threads=1))


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
def make_subject() -> Callable[..., Subject]:
    """`make_subject(model, precision)`: a copy of a `Transformer`, ready to be traced and recorded."""

    def make(model: Transformer, precision: str = "float32") -> Subject:
        module, interface = copy.deepcopy(model).eval().to(DTYPES[precision]), model.config.interface
        (example,) = sequences_of(interface, [1])
        layers = find_layers(module, interface, example)
        return Subject(module=module, interface=interface, layers=layers, precision=precision)

    return make


@pytest.fixture(scope="session")
def small_graph(small_model: Transformer, make_subject: Callable[..., Subject]) -> onnx.ModelProto:
    """`small_model` as it was traced. Not to be changed: copy it."""
    return trace(make_subject(small_model))


@pytest.fixture(scope="session")
def tiny_graph(checkpoint: Path, make_subject: Callable[..., Subject]) -> onnx.ModelProto:
    """The model of `bundles` as it was traced. Not to be changed: copy it."""
    return trace(make_subject(load_checkpoint(checkpoint).model))


@pytest.fixture(scope="session")
def export_tiny(checkpoint: Path, tiny_graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`export_tiny(**options)`: the model of `bundles` in another way, without tracing it again."""

    def export(*, max_inline_bytes: int | None = None, **options: Any) -> Path:
        place = tmp_path_factory.mktemp("repository") / "tiny" / "1"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph, "trace", lambda subject: copy.deepcopy(tiny_graph))
            if max_inline_bytes is not None:
                patch.setattr(graph, "MAX_INLINE_BYTES", max_inline_bytes)
            export_checkpoint(checkpoint, place, **options)
        return place

    return export


@pytest.fixture
def traced_before(small_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of `small_checkpoint` take the graph that is there instead of tracing it again."""
    monkeypatch.setattr(graph, "trace", lambda subject: copy.deepcopy(small_graph))


@pytest.fixture(scope="session")
def small_bundle(
    small_checkpoint: Path, small_graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Not to be written to: copy it."""
    place = tmp_path_factory.mktemp("repository") / "small" / "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", lambda subject: copy.deepcopy(small_graph))
        export_checkpoint(small_checkpoint, place)
    return place


@pytest.fixture
def changed_bundle(small_bundle: Path, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """Copy `small_bundle`, change its graph, and make its hashes agree."""

    def make(change: Callable[[onnx.ModelProto], None]) -> Path:
        folder = Path(shutil.copytree(small_bundle, tmp_path / "changed" / "1"))
        model = onnx.load(folder / bundle.MODEL_FILE)
        change(model)
        onnx.save(model, folder / bundle.MODEL_FILE)
        manifest = bundle.read_manifest(folder)
        manifest.files.update(bundle.hash_files(folder))
        bundle.write_manifest(folder, manifest)
        return folder

    return make


@pytest.fixture(scope="session")
def ask_torch() -> Callable[..., Truth]:
    """`ask_torch(model, packed)`: a float64 forward pass, everything recorded on its way.

    Of a module that is no `Transformer`, the third argument names each layer's block and projection in it.
    """
    return _ask_torch


def _parts_of(model: Transformer) -> list[tuple[nn.Module, nn.Linear]]:
    return [(block, block.attention.output) for block in model.layers]


@torch.no_grad()
def _ask_torch(
    model: nn.Module, packed: Packed, parts_of: Callable[[Any], list[tuple[nn.Module, nn.Linear]]] = _parts_of
) -> Truth:
    oracle = copy.deepcopy(model).double().eval()
    inputs = torch.from_numpy(packed.inputs)
    arguments = [inputs.double() if inputs.is_floating_point() else inputs]
    arguments += [torch.from_numpy(packed.positions), torch.from_numpy(packed.slots)]
    if not (isinstance(model, Transformer) and model.config.pooling == "mean"):
        arguments.append(torch.arange(len(inputs)))
    parts = parts_of(oracle)
    with _recording(oracle) as recorded, recorded_outputs(block for block, _ in parts) as streams:
        logits = oracle(*arguments)
    captures = []
    for (_, projection), hidden, seen in zip(parts, streams, recorded, strict=True):
        value, num_heads = seen.pop("value"), seen["query"].shape[1]
        value = value.repeat_interleave(num_heads // value.shape[1], dim=1)
        weight = projection.weight.unflatten(1, (num_heads, -1))
        norm = torch.einsum("dhv,thv->thd", weight, value).norm(dim=-1)
        captures.append({**seen, "hidden": hidden, "value_norm": norm})
    return Truth(
        logits=logits.numpy(),
        captures=[{kind: tensor.numpy() for kind, tensor in layer.items()} for layer in captures],
    )


@contextmanager
def _recording(model: nn.Module) -> Iterator[list[dict[str, torch.Tensor]]]:
    recorded: list[dict[str, torch.Tensor]] = []
    for layer in (module for module in model.modules() if isinstance(module, Attention)):
        seen: dict[str, torch.Tensor] = {}
        recorded.append(seen)

        def attend(query, key, value, slots, seen=seen, inner=layer.attend):
            seen |= {"query": query, "key": key, "value": value}
            return inner(query, key, value, slots)

        def measure(*arguments, seen=seen, inner=layer.measure):
            seen["metric"] = inner(*arguments)
            return seen["metric"]

        layer.attend = attend
        if layer.measure is not None:
            layer.measure = measure
    yield recorded
