from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.attention.recording import attention_layers, recorded_outputs, recorded_weights, scaled_heads

SEQUENCES = [np.array([1, 5, 2, 0, 3]), np.array([4, 6])]


@pytest.fixture
def model() -> Transformer:
    config = TransformerConfig(
        vocabulary_size=7,
        max_length=9,
        width=8,
        num_heads=4,
        num_key_heads=2,
        head_size=3,
        attention=(
            AttentionConfig(variant="expressive", window=3),
            AttentionConfig(variant="elliptical", scope="prefix", scaling="mean"),
            AttentionConfig(softcap=2.0),
        ),
    )
    return Transformer(config, seed=1).double().eval()


@torch.no_grad()
def predict(model: Transformer) -> Tensor:
    return torch.cat(model.predict(SEQUENCES))


def seams(model: nn.Module) -> list[Any]:
    return [(layer.attend, layer.measure) for layer in attention_layers(model)]


def test_layers_are_found_in_their_order(model: Transformer) -> None:
    assert attention_layers(model) == [block.attention.attention for block in model.layers]
    assert attention_layers(nn.Linear(1, 1)) == []


def test_a_factor_of_one_changes_nothing(model: Transformer) -> None:
    plain = predict(model)
    with scaled_heads(model, torch.ones(3, 4)):
        assert torch.equal(predict(model), plain)


@pytest.mark.parametrize("factor", [0.0, 0.5, -2.0])
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2), (2, 3)])
def test_a_factor_is_on_the_output_of_its_head(model: Transformer, layer: int, head: int, factor: float) -> None:
    plain, head_scale = predict(model), torch.ones(3, 4)
    head_scale[layer, head] = factor
    with scaled_heads(model, head_scale):
        scaled = predict(model)
    assert not torch.allclose(scaled, plain, atol=1e-6)
    # Head h writes through its own columns of the output projection.
    weight = model.layers[layer].attention.output.weight.data
    weight[:, 3 * head : 3 * head + 3] *= factor
    torch.testing.assert_close(predict(model), scaled, rtol=0, atol=1e-12)


def test_outputs_are_kept_in_the_order_of_the_calls(model: Transformer) -> None:
    with recorded_outputs(model.layers) as states, recorded_outputs([model.unembedding]) as logits:
        predict(model)
        answer = predict(model)
    assert [state.shape for state in states] == [(7, 8)] * 6
    assert torch.equal(logits[1], answer)
    torch.testing.assert_close(model.unembedding(model.final_norm(states[5])), answer)
    assert torch.equal(states[0], states[3])
    assert not torch.allclose(states[0], states[1])


def test_of_a_tuple_the_first_is_kept() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x + 2

    module = Pair()
    with recorded_outputs([module]) as outputs:
        module(torch.zeros(2))
    assert [output.tolist() for output in outputs] == [[1.0, 1.0]]


def test_weights_are_recorded_of_scaled_heads_too(model: Transformer) -> None:
    with recorded_weights(model) as plain:
        predict(model)
    scale = torch.tensor([[1.0] * 4, [0.0] * 4, [1.0] * 4])
    with scaled_heads(model, scale), recorded_weights(model) as scaled:
        predict(model)
    assert [weights.shape for weights in plain] == [(2, 4, 5, 5)] * 3
    # Where a head looks is before the factor; what the next layer sees is after it.
    assert torch.equal(plain[0], scaled[0])
    assert torch.equal(plain[1], scaled[1])
    assert not torch.allclose(plain[2], scaled[2])


@pytest.mark.parametrize(
    "hold",
    [
        recorded_weights,
        lambda model: scaled_heads(model, torch.zeros(3, 4)),
        lambda model: recorded_outputs(model.layers),
    ],
    ids=["weights", "scaled", "outputs"],
)
def test_the_model_is_left_as_it_was(model: Transformer, hold: Callable[[Any], AbstractContextManager[Any]]) -> None:
    before, plain = seams(model), predict(model)
    with hold(model):
        predict(model)
    assert seams(model) == before
    fault = model.unembedding.register_forward_pre_hook(lambda *call: 1 // 0)
    with pytest.raises(ZeroDivisionError), hold(model):
        predict(model)
    fault.remove()
    assert seams(model) == before
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(predict(model), plain)


@pytest.mark.parametrize("num_layers", [2, 4])
def test_factors_of_other_layers_are_refused_and_leave_no_trace(model: Transformer, num_layers: int) -> None:
    before = seams(model)
    refused = pytest.raises(ValueError, match="head_scale: expected 3 rows")
    with refused, scaled_heads(model, torch.zeros(num_layers, 4)):
        pass
    assert seams(model) == before
