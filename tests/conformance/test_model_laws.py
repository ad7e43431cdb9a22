"""What holds for whole models of every variant: nobody's answer depends on batch-mates, or on the future."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.config import POSITIONS
from tests.conformance.cases import layer_options

VOCABULARY = 11


def model_configs(positions: str, *, causal: bool) -> list[TransformerConfig]:
    """Small models: three layers of every variant and option of it, and one of all variants mixed."""
    layers = [
        AttentionConfig(variant=variant, **options)
        for variant in VARIANTS
        for options in layer_options(variant, causal=causal)
    ]
    # Layer 0 has no previous values, so it is one that needs none.
    stacks = [(AttentionConfig() if VARIANTS[layer.variant].metric_op else layer, layer, layer) for layer in layers]
    return [
        TransformerConfig(
            vocabulary_size=VOCABULARY,
            max_length=16,
            width=12,
            num_heads=3,
            attention=stack,
            causal=causal,
            positions=positions,
            mlp_ratio=2.0,
            bias=True,
        )
        for stack in [*stacks, tuple(layers)]
    ]


KINDS = {
    "features, a leading row": {
        "vocabulary_size": None,
        "num_features": 5,
        "task": "classify_sequence",
        "num_classes": 4,
        "pooling": "first",
        "causal": False,
    },
    "features, mean": {
        "vocabulary_size": None,
        "num_features": 5,
        "task": "classify_sequence",
        "num_classes": 4,
        "pooling": "mean",
        "causal": False,
        "positions": "sinusoidal",
        "activation": "relu",
    },
    "ids, mean": {"task": "classify_sequence", "num_classes": 4, "pooling": "mean", "causal": False},
    "ids, last": {"task": "classify_sequence", "num_classes": 4, "pooling": "last"},
    "features, a class per step": {
        "vocabulary_size": None,
        "num_features": 5,
        "task": "classify_token",
        "num_classes": 4,
        "bias": False,
    },
    "a class per id": {"task": "classify_token", "num_classes": 4, "causal": False, "positions": "rotary"},
    "post-norm, grouped heads": {"norm": "post", "num_heads": 4, "num_key_heads": 2, "tied_embeddings": True},
    "one key head": {"num_key_heads": 1, "head_size": 6, "positions": "rotary"},
    "head size 5": {"head_size": 5, "activation": "silu", "norm": "post", "causal": False},
    "tied": {"tied_embeddings": True, "bias": False},
}


def kind_of(changes: dict[str, Any]) -> TransformerConfig:
    """A small model of another kind, of all variants mixed."""
    scope = "prefix" if changes.get("causal", True) else "sequence"
    elliptical = AttentionConfig(variant="elliptical", scope=scope, scaling="max")
    fields = {
        "vocabulary_size": VOCABULARY,
        "max_length": 16,
        "width": 12,
        "num_heads": 3,
        "attention": (AttentionConfig(variant="expressive"), elliptical, AttentionConfig(window=4)),
        "bias": True,
    }
    return TransformerConfig(**fields | changes)


KIND_CONFIGS = {name: kind_of(changes) for name, changes in KINDS.items()}


def describe(config: TransformerConfig) -> str:
    variants = "+".join(dict.fromkeys(layer.variant for layer in config.attention))
    own = config.attention[-1]
    direction = "causal" if config.causal else "bidirectional"
    return " ".join(filter(None, (variants, own.scope, own.scaling, config.positions, direction)))


MODELS = {
    describe(config): config
    for positions in POSITIONS
    for causal in (True, False)
    for config in model_configs(positions, causal=causal)
} | KIND_CONFIGS
CAUSAL_MODELS = {name: config for name, config in MODELS.items() if config.causal}
POOLED_MODELS = {name: config for name, config in MODELS.items() if config.pooling is not None}

every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
every_causal_model = pytest.mark.parametrize("config", CAUSAL_MODELS.values(), ids=CAUSAL_MODELS.keys())
every_pooled_model = pytest.mark.parametrize("config", POOLED_MODELS.values(), ids=POOLED_MODELS.keys())


def model_of(config: TransformerConfig, dtype: torch.dtype) -> Transformer:
    model = Transformer(config, seed=1).to(dtype).eval()
    # Gains of 1 and biases of 0 would hide a norm that forgets them.
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def sequences_of(config: TransformerConfig, *lengths: int) -> list[NDArray[Any]]:
    random = np.random.default_rng(3)
    if config.num_features is None:
        return [random.integers(0, VOCABULARY, length) for length in lengths]
    return [random.normal(size=(length, config.num_features)).astype(np.float32) for length in lengths]


def changed(inputs: NDArray[Any]) -> NDArray[Any]:
    """Other ids or features than these, every one of them."""
    return inputs + np.float32(1) if inputs.dtype == np.float32 else (inputs + 1) % VOCABULARY


@torch.no_grad()
def run(model: Transformer, sequences: list[NDArray[Any]]) -> list[dict[str, Tensor]]:
    """Per sequence: logits, [n, W] or [1, C] if it is pooled, and hidden [n, layers, D], the leading row included."""
    with recorded_outputs(model.layers) as states:
        logits = model.predict(sequences)
    leading = int(model.config.interface.leading_row)
    hidden = torch.stack(states, 1).split([len(sequence) + leading for sequence in sequences])
    return [{"logits": logit, "hidden": state} for logit, state in zip(logits, hidden, strict=True)]


@every_model
def test_batch_mates_their_lengths_and_place_do_not_matter(config: TransformerConfig) -> None:
    model = model_of(config, torch.float64)
    sequences = sequences_of(config, 5, 1, 16, 2, 9)
    alone = [run(model, [sequence])[0] for sequence in sequences]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 1, 0], [3, 2]):
        together = run(model, [sequences[index] for index in order])
        for index, answer in zip(order, together, strict=True):
            for name, expected in alone[index].items():
                torch.testing.assert_close(answer[name], expected, rtol=0, atol=1e-12)


@every_causal_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_future_changes_nothing_bit_for_bit(config: TransformerConfig, dtype: torch.dtype) -> None:
    model = model_of(config, dtype)
    before = sequences_of(config, 7, 12, 3)
    answers = run(model, before)
    for step in (0, 4, 10):
        after = [sequence.copy() for sequence in before]
        after[1][step + 1 :] = changed(after[1][step + 1 :])
        other = run(model, after)
        # One answer for a whole sequence has no step before the change.
        for name in ("hidden",) if config.pooling is not None else ("logits", "hidden"):
            assert torch.equal(other[1][name][: step + 1], answers[1][name][: step + 1])
            # The change did arrive, in the very next step.
            assert not torch.equal(other[1][name][step + 1], answers[1][name][step + 1])
        for name in ("logits", "hidden"):
            assert torch.equal(other[0][name], answers[0][name])
            assert torch.equal(other[2][name], answers[2][name])


@every_pooled_model
def test_an_answer_for_a_sequence_is_made_of_all_its_steps(config: TransformerConfig) -> None:
    model = model_of(config, torch.float64)
    # Further back than a window of 4 reaches in its one layer; the others carry it.
    (before,) = sequences_of(config, 12)
    (answer,) = run(model, [before])
    for step in range(12):
        after = before.copy()
        after[step] = changed(after[step])
        assert not torch.allclose(run(model, [after])[0]["logits"], answer["logits"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scaling", ["max", "mean"])
def test_the_leaky_scope_does_leak(scaling: str) -> None:
    # The negative control of the test above: the published estimator, which lets a step see its own future.
    leaky = AttentionConfig(variant="elliptical", scope="sequence-leaky", scaling=scaling)
    config = TransformerConfig(
        vocabulary_size=VOCABULARY, max_length=16, width=12, num_heads=3, attention=(AttentionConfig(), leaky)
    )
    model = model_of(config, torch.float64)
    (before,) = sequences_of(config, 12)
    after = before.copy()
    after[5:] = changed(after[5:])
    difference = run(model, [before])[0]["logits"][:5] - run(model, [after])[0]["logits"][:5]
    # Step 0 sees one key, so its weight is 1 under any metric.
    assert (difference[1:].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bidirectional_model_sees_the_future(variant: str) -> None:
    options = layer_options(variant, causal=False)[0]
    layers = (AttentionConfig(), AttentionConfig(variant=variant, **options))
    config = TransformerConfig(
        vocabulary_size=VOCABULARY, max_length=16, width=12, num_heads=3, attention=layers, causal=False
    )
    model = model_of(config, torch.float64)
    (before,) = sequences_of(config, 12)
    after = before.copy()
    after[-1] = changed(after[-1])
    difference = run(model, [before])[0]["logits"] - run(model, [after])[0]["logits"]
    assert (difference.abs().amax(-1) > 1e-9).all()


@every_model
def test_every_parameter_has_a_finite_gradient(config: TransformerConfig) -> None:
    model = model_of(config, torch.float32)
    (sequence,) = sequences_of(config, 9)
    # Twice the same token: with no positions, two rows are equal and differences between them 0.
    sequence[:2] = sequence[0]
    loss = torch.stack([logits.square().mean() for logits in model.predict([sequence, sequence[:1]])]).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
