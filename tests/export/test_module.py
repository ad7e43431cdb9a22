"""Other people's modules are found by watching them run, and exported as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attnserve.bundle import read_manifest
from attnserve.export import export_module
from attnserve.export.describe import hash_state
from attnserve.export.subject import find_layers
from attnserve.golden import read_golden, replay
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.packing import pack
from attnserve.runtime import Runtime
from tests.export.foreign import (
    EXAMPLE,
    EXPRESSIVE,
    INTERFACE,
    MAX_LENGTH,
    SIZE,
    WORDS,
    Flat,
    Foreign,
    Named,
    assert_unchanged,
    foreign,
    hot,
    normed,
    state_of,
)

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def model() -> Foreign:
    """In training, partly frozen, watched by its owner, and with a gradient that waits for its step."""
    model = foreign().train()
    model.words.requires_grad_(False)
    model.stack[0].register_forward_hook(lambda *_: None)
    steps = torch.arange(5)
    model(torch.from_numpy(EXAMPLE), steps, steps[None], steps).sum().backward()
    return model


@pytest.fixture(scope="module")
def runtime(model: Foreign, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    place = tmp_path_factory.mktemp("repository") / "foreign" / "3"
    before = state_of(model)
    options = {"labels": [f"w{index}" for index in range(WORDS)], "card": {"by": "somebody"}}
    export_module(
        model, EXAMPLE, task="next_token", destination=place, max_length=MAX_LENGTH, vocabulary_size=WORDS, **options
    )
    assert_unchanged(model, before)
    return Runtime(place, num_threads=1)


def test_the_certificate_of_a_foreign_module_holds(runtime: Runtime) -> None:
    certificate = runtime.manifest.certificate
    assert replay(runtime, read_golden(runtime.folder)).passed
    for deviation in (certificate.logits, certificate.maps):
        assert 0 < deviation.measured <= deviation.allowed < 1e-3


def test_its_captures_are_what_pytorch_computed(
    runtime: Runtime, model: Foreign, ask_torch: Callable[..., Any]
) -> None:
    packed = pack([EXAMPLE, np.array([2]), np.arange(9), np.array([10, 0])])
    truth = ask_torch(model, packed, lambda module: [(block, block.mix) for block in module.stack])
    rows = np.arange(len(packed.inputs))
    answer = runtime.run(packed, rows, [entry.name for entry in runtime.manifest.outputs], capture=rows)
    np.testing.assert_allclose(answer["logits"], truth.logits, rtol=0, atol=1e-5)
    for layer, expected in zip(runtime.manifest.layers, truth.captures, strict=True):
        assert layer.captures.keys() == expected.keys()
        for kind, name in layer.captures.items():
            np.testing.assert_allclose(answer[name], expected[kind], rtol=0, atol=2e-5 * np.abs(expected[kind]).max())


def test_its_manifest_says_what_it_was_told_and_what_was_found(runtime: Runtime, model: Foreign) -> None:
    manifest = runtime.manifest
    assert (manifest.task, manifest.max_length, manifest.vocabulary_size) == ("next_token", MAX_LENGTH, WORDS)
    assert (manifest.labels[10], manifest.card) == ("w10", {"by": "somebody"})
    assert manifest.provenance.checkpoint_sha256 == {"state_dict": hash_state(model)}
    assert [(layer.variant, layer.epsilon, layer.window) for layer in manifest.layers] == [
        ("expressive", 0.01, 0),
        ("elliptical", 0.0, 4),
    ]
    sizes = {(one.num_heads, one.num_key_heads, one.head_size, one.value_size) for one in manifest.layers}
    assert sizes == {(4, 2, SIZE, SIZE)}
    assert not manifest.portable


def test_the_example_is_part_of_golden(runtime: Runtime) -> None:
    assert read_golden(runtime.folder).sequences[-1].tolist() == EXAMPLE.tolist()


def test_layers_are_found_where_they_are() -> None:
    model = foreign().eval()
    for layer, block in zip(find_layers(model, INTERFACE, EXAMPLE), model.stack, strict=True):
        assert (layer.attention, layer.projection, layer.block) == (block.core, block.mix, block)


def test_layers_that_are_no_list_are_found_too() -> None:
    model = foreign(Named).eval()
    assert [layer.block for layer in find_layers(model, INTERFACE, EXAMPLE)] == [model.first, model.second]


def test_blocks_may_be_named() -> None:
    model = foreign(Flat).eval()
    (layer,) = find_layers(model, INTERFACE, EXAMPLE, blocks=[model.seam])
    assert (layer.block, layer.projection) == (model.seam, model.mix)


def test_projections_may_be_named() -> None:
    model = normed().eval()
    projections = [block.mix for block in model.stack]
    layers = find_layers(model, INTERFACE, EXAMPLE, projections=projections)
    assert [layer.projection for layer in layers] == projections


def test_a_projection_is_found_though_what_it_reads_is_no_number() -> None:
    model = hot().eval()
    assert [layer.projection for layer in find_layers(model, INTERFACE, EXAMPLE)] == [one.mix for one in model.stack]


def test_a_projection_is_found_though_attention_is_wider_than_it() -> None:
    model = foreign().half().eval()
    for block in model.stack:
        block.core.register_forward_hook(lambda _, __, output: output.float())
        block.mix.register_forward_pre_hook(lambda _, arguments: arguments[0].half())
    assert [layer.projection for layer in find_layers(model, INTERFACE, EXAMPLE)] == [one.mix for one in model.stack]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [(normed, {"projections": ["stack.0.mix", "stack.1.mix"]}), (lambda: foreign(Flat), {"blocks": ["seam"]})],
    ids=["projections", "blocks"],
)
def test_with_what_was_named_they_are_exported(
    tmp_path: Path, make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    place = tmp_path / "foreign" / "1"
    told = {"task": "next_token", "max_length": MAX_LENGTH, "vocabulary_size": WORDS}
    export_module(make(), EXAMPLE, destination=place, **told, **options)
    assert replay(Runtime(place, num_threads=1), read_golden(place)).passed


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_module_of_features_is_exported_too(tmp_path: Path, pooling: str, precision: str) -> None:
    told = {"task": "classify_sequence", "num_classes": 3, "pooling": pooling, "max_length": 12}
    config = TransformerConfig(
        num_features=2, width=8, num_heads=2, causal=False, attention=(EXPRESSIVE, AttentionConfig()), **told
    )
    example = np.random.default_rng(0).normal(5, 2, (7, 2))
    place = tmp_path / "features" / "1"
    options = {
        "leading_row": config.interface.leading_row,
        "labels": ["a", "b", "c"],
        "precision": precision,
        "top_k": 2,
    }
    export_module(Transformer(config, seed=1), example, destination=place, **told, **options)
    golden, manifest = read_golden(place), read_manifest(place)
    assert replay(Runtime(place, num_threads=1), golden).passed
    np.testing.assert_array_equal(golden.sequences[-1][-7:], example.astype(np.float32))
    assert len(golden.sequences[-1]) == 7 + (pooling == "first")
    assert (manifest.leading_row, manifest.top_k) == (pooling == "first", 2)
    assert ("rows" in {entry.name for entry in manifest.inputs}) == (pooling != "mean")
    assert manifest.warnings == ()
