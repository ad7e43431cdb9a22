"""PyTorch in float64 against the reader written from docs/checkpoint.md alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnserve.models import load_checkpoint
from tests.conftest import COMMITTED
from tests.reference import numpy_config, numpy_transformer
from tests.reference.kinds import (
    DOT,
    EVERY_KIND,
    EXPRESSIVE,
    LEAKY_MAX,
    LEAKY_MEAN,
    MAX,
    MAX_LENGTH,
    MEAN,
    SEQUENCE_MAX,
    SEQUENCE_MEAN,
)
from tests.reference.random_checkpoints import save_random_checkpoint

RELATIVE_ERROR = 1e-10

FORWARD: dict[str, list[dict[str, Any]]] = {
    "dot_product": [DOT, DOT],
    "expressive": [EXPRESSIVE, {**EXPRESSIVE, "epsilon": 0.3}],
    "elliptical prefix max": [DOT, MAX, MAX],
    "elliptical prefix mean": [DOT, MEAN, MEAN],
    "elliptical leaky max": [DOT, LEAKY_MAX],
    "elliptical leaky mean": [DOT, LEAKY_MEAN],
    "mixed": [EXPRESSIVE, MAX, DOT, MEAN, {**EXPRESSIVE, "epsilon": 0.01}],
}
BOTH_WAYS: dict[str, list[dict[str, Any]]] = {
    "dot_product": [DOT, DOT],
    "expressive": [EXPRESSIVE, {**EXPRESSIVE, "epsilon": 0.3}],
    "elliptical max": [DOT, SEQUENCE_MAX, SEQUENCE_MAX],
    "elliptical mean": [DOT, SEQUENCE_MEAN, SEQUENCE_MEAN],
    "mixed": [EXPRESSIVE, SEQUENCE_MAX, DOT, SEQUENCE_MEAN],
}
POSITIONS = ("orthogonal", "learned", "sinusoidal", "rotary", "none")

# Dealt out by `grid` so that each of them meets every stack, and every kind of positions.
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"bias": True, "activation": "gelu_tanh", "layer": {"window": 5}},
    {"activation": "relu", "num_heads": 1, "mlp_ratio": 1.5, "layer": {"softcap": 1.5}},
    {"bias": True, "activation": "silu", "norm_epsilon": 0.2, "layer": {"scale": 1.7}},
    {"num_heads": 6, "rotary_base": 100.0, "layer": {"scale": 0.05, "window": 1, "softcap": 0.7}},
    {"bias": True, "mlp_ratio": 0.125, "layer": {"window": 17, "softcap": 20.0, "scale": 3.0}},
)


def grid() -> list[Any]:
    cases: list[Any] = []
    for causal, stacks in ((True, FORWARD), (False, BOTH_WAYS)):
        for i, (stack, layers) in enumerate(stacks.items()):
            for j, positions in enumerate(POSITIONS):
                for choice in (2 * (i + j) % len(OPTIONS), (2 * (i + j) + 3) % len(OPTIONS)):
                    options = {**OPTIONS[choice]}
                    per_layer = options.pop("layer", {})
                    fields = {"causal": causal, "positions": positions, **options}
                    name = f"{stack} {positions} {'causal' if causal else 'bidirectional'} {choice}"
                    cases.append(pytest.param([{**layer, **per_layer} for layer in layers], fields, id=name))
    # Options that differ from layer to layer.
    uneven = [{**DOT, "window": 3}, {**MAX, "scale": 0.3}, {**EXPRESSIVE, "window": 9, "softcap": 2.0}, MEAN]
    cases.append(pytest.param(uneven, {"positions": "rotary", "bias": True}, id="layers of their own"))
    cases.append(pytest.param([DOT, LEAKY_MAX], {"width": 5, "num_heads": 5, "positions": "none"}, id="one channel"))
    cases.append(pytest.param([EXPRESSIVE], {"vocabulary_size": 1, "num_heads": 12}, id="one token"))
    return cases + EVERY_KIND


def random_sequences(config: dict[str, Any], seed: int, *lengths: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [random_sequence(config, rng, length) for length in lengths or (1, 2, MAX_LENGTH, 3, 11, 24, 31)]


def random_sequence(config: dict[str, Any], rng: np.random.Generator, length: int) -> Any:
    if config["num_features"] is None:
        return rng.integers(config["vocabulary_size"], size=length).tolist()
    # Whole float32 numbers: the page does not say in which type a vector is read.
    return rng.standard_normal((length, config["num_features"])).astype(np.float32).tolist()


def relative_error(measured: Any, expected: Any) -> float:
    return float(np.abs(measured - expected).max() / np.abs(expected).max())


def assert_pytorch_agrees(folder: Path, *lengths: int) -> None:
    ours = numpy_transformer.load(folder)
    theirs = load_checkpoint(folder).model.double().eval()
    sequences = random_sequences(ours.config, 1, *lengths)
    with torch.no_grad():
        answers = theirs.predict(sequences)
    of = numpy_config.letters(ours.config)
    for sequence, answer in zip(sequences, answers, strict=True):
        assert answer.dtype == torch.float64
        expected = numpy_transformer.logits(ours, sequence)
        num_rows = 1 if ours.config["task"] == "classify_sequence" else len(sequence)
        assert expected.shape == (num_rows, of.C or of.W)
        assert answer.shape == expected.shape
        assert relative_error(answer.numpy(), expected) <= RELATIVE_ERROR


@pytest.mark.parametrize(("layers", "fields"), grid())
def test_pytorch_agrees(layers: list[dict[str, Any]], fields: dict[str, Any], tmp_path: Path) -> None:
    assert_pytorch_agrees(save_random_checkpoint(tmp_path / "checkpoint", len(layers), layers, **fields))


@pytest.mark.parametrize("name", list(COMMITTED))
def test_pytorch_agrees_on_what_it_wrote_itself(name: str) -> None:
    assert_pytorch_agrees(COMMITTED[name], 1, 2, 13)


@pytest.mark.parametrize(("layers", "fields"), [*grid()[::4], *EVERY_KIND])
def test_maps_are_what_the_page_says(layers: list[dict[str, Any]], fields: dict[str, Any], tmp_path: Path) -> None:
    model = numpy_transformer.load(save_random_checkpoint(tmp_path / "checkpoint", 5, layers, **fields))
    (sequence,) = random_sequences(model.config, 2, 13)
    weights = numpy_transformer.maps(model, sequence)
    num_steps = 14 if "num_features" in fields and fields.get("pooling") == "first" else 13
    assert weights.shape == (len(layers), model.config["num_heads"], num_steps, num_steps)
    assert (weights >= 0).all()
    for layer, options in zip(weights, layers, strict=True):
        hidden = ~numpy_transformer.allowed_keys(num_steps, model.config["causal"], options.get("window", 0))
        assert (layer[:, hidden] == 0).all()
        sums = layer.sum(axis=-1)
        if options.get("epsilon", 0.0) > 0:
            assert ((sums > 0) & (sums < 1)).all()
        else:
            np.testing.assert_allclose(sums, 1, rtol=1e-12)


def test_the_grid_tells_readers_apart(tmp_path: Path) -> None:
    """A comparison that any change to the reader survives would prove nothing."""
    layers = [{**DOT, "window": 3}, {**MAX, "softcap": 2.0}, {**EXPRESSIVE, "epsilon": 0.1}]
    folder = save_random_checkpoint(tmp_path / "checkpoint", 7, layers, positions="rotary", bias=True)
    model = numpy_transformer.load(folder)
    tokens = np.arange(30) % 11
    expected = numpy_transformer.logits(model, tokens)
    for field, other in {"causal": False, "norm_epsilon": 2e-5, "activation": "gelu_tanh", "positions": "none"}.items():
        changed = numpy_transformer.Model({**model.config, field: other}, model.tensors)
        assert relative_error(numpy_transformer.logits(changed, tokens), expected) > 1e3 * RELATIVE_ERROR, field
    for layer, field, other in (
        (0, "window", 4),
        (0, "scale", 0.3),
        (1, "scaling", "mean"),
        (1, "scope", "sequence"),
        (1, "softcap", 2.1),
        (2, "epsilon", 0.11),
        (2, "variant", "dot_product"),
    ):
        attention = [dict(options) for options in model.config["attention"]]
        attention[layer][field] = other
        changed = numpy_transformer.Model({**model.config, "attention": attention}, model.tensors)
        assert relative_error(numpy_transformer.logits(changed, tokens), expected) > 1e3 * RELATIVE_ERROR, field
    for name, tensor in model.tensors.items():
        if name.endswith("attention.key.bias"):
            # Adds the same to every score of a dot-product row, which cancels there.
            continue
        changed = numpy_transformer.Model(model.config, {**model.tensors, name: 1.001 * tensor})
        assert relative_error(numpy_transformer.logits(changed, tokens), expected) > 1e3 * RELATIVE_ERROR, name


@pytest.mark.parametrize(("layers", "fields"), EVERY_KIND)
def test_the_kinds_tell_readers_apart(layers: list[dict[str, Any]], fields: dict[str, Any], tmp_path: Path) -> None:
    """What a reader leaves out is seen: the way it looks, the norms' place, the pooling, and any of the tensors."""
    model = numpy_transformer.load(save_random_checkpoint(tmp_path / "checkpoint", 7, layers, **fields))
    (sequence,) = random_sequences(model.config, 3, 30)
    expected = numpy_transformer.logits(model, sequence)
    others = {"causal": not model.config["causal"], "positions": "none", "pooling": "mean", "norm": "post"}
    for field, other in others.items():
        if model.config[field] not in (None, other):
            changed = numpy_transformer.Model({**model.config, field: other}, model.tensors)
            assert relative_error(numpy_transformer.logits(changed, sequence), expected) > 1e3 * RELATIVE_ERROR, field
    for name, tensor in model.tensors.items():
        if name.endswith("attention.key.bias"):
            # Adds the same to every score of a dot-product row, which cancels there.
            continue
        changed = numpy_transformer.Model(model.config, {**model.tensors, name: 1.001 * tensor})
        assert relative_error(numpy_transformer.logits(changed, sequence), expected) > 1e3 * RELATIVE_ERROR, name
