import numpy as np
import pytest
import torch

from attnserve.models import Transformer, TransformerConfig, layers_of
from attnserve.models.attention import VARIANTS
from attnserve.models.recipes.conditioning import measure_conditioning, observe


def new_model(variant: str) -> Transformer:
    elliptical = {"scope": "prefix", "scaling": "max"} if variant == "elliptical" else {}
    config = TransformerConfig(
        vocabulary_size=6,
        max_length=12,
        width=8,
        num_heads=2,
        attention=layers_of(variant, 2, window=4, softcap=5.0, **elliptical),
        positions="rotary",
    )
    return Transformer(config, seed=1).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_observed_are_those_the_model_used(variant: str) -> None:
    model, tokens = new_model(variant).double(), np.array([0, 5, 3, 3, 1, 2, 0])
    values = []
    attention = model.layers[1].attention
    hook = attention.value.register_forward_hook(lambda *call: values.append(call[2].unflatten(-1, (2, 4))))
    attended = []
    output = attention.output.register_forward_hook(lambda *call: attended.append(call[1][0]))
    seen = observe(model, tokens)
    hook.remove()
    output.remove()

    assert [tuple(weights.shape) for weights in seen.weights] == [(2, 7, 7)] * 2
    assert seen.logits.equal(model.predict([tokens])[0])
    expected = torch.einsum("hqk,khv->qhv", seen.weights[1], values[0]).flatten(1)
    torch.testing.assert_close(attended[0], expected, rtol=0, atol=1e-13)
    assert (seen.weights[0].triu(1) == 0).all()
    assert (seen.weights[1].tril(-4) == 0).all(), "outside the window"


def test_observing_leaves_the_model_as_it_was() -> None:
    model = new_model("expressive")
    before = [block.attention.attention.attend for block in model.layers]
    observe(model, np.array([1, 2]))
    with pytest.raises(ValueError, match=r"^sequences\[0\]: expected integers from 0 to 5"):
        observe(model, np.array([99]))
    # And inside the model, where the weights are being recorded.
    with model.final_norm.register_forward_pre_hook(lambda *call: 1 // 0), pytest.raises(ZeroDivisionError):
        observe(model, np.array([1, 2]))

    assert [block.attention.attention.attend for block in model.layers] == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_conditioning_is_rounding_and_depends_on_the_seed_alone(variant: str) -> None:
    model = new_model(variant)
    found = [measure_conditioning(model, np.random.default_rng(0), num_sequences=8) for _ in range(2)]

    assert found[0] == found[1]
    assert found[0].max_length == 12
    assert 0 < found[0].logits < 1e-4
    assert 0 < found[0].weights < 1e-3
    assert next(model.parameters()).dtype == torch.float32, "the model itself stays as it was"


def test_exact_numbers_have_no_rounding() -> None:
    conditioning = measure_conditioning(new_model("dot_product").double(), np.random.default_rng(0), num_sequences=3)

    assert (conditioning.logits, conditioning.weights) == (0, 0)
