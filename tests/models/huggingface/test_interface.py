"""Attention by our functions inside of transformers: padded, differentiable, and the same as its own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attnserve.models.huggingface import configure, register
from attnserve.models.huggingface.interface import attend_padded
from tests.models.huggingface import zoo

ELLIPTICAL = {"variant": "elliptical", "scope": "sequence", "scaling": "max"}
EXPRESSIVE = {"variant": "expressive", "epsilon": 0.01}


def batch(*lengths: int) -> dict[str, Tensor]:
    """Ids of these lengths, padded on the right with what would be noticed."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, zoo.WORDS, (len(lengths), max(lengths)), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()}


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM", "ModernBertForMaskedLM", "GPT2LMHeadModel"])
def test_dot_product_attention_is_transformers_own(name: str) -> None:
    register()
    model, inputs = zoo.make(name).double(), batch(9, 4, 12)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation("attnserve")
        found = model(**inputs).logits
    seen = inputs["attention_mask"].bool()
    # Rotations and norms of these models compute in float32, whatever the model's type.
    torch.testing.assert_close(found[seen], expected[seen], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", [EXPRESSIVE, ELLIPTICAL], ids=lambda attention: attention["variant"])
def test_padding_changes_no_answer(attention: dict[str, Any]) -> None:
    model, inputs = zoo.make("BertForMaskedLM").double(), batch(9, 4, 12)
    configure(model, **attention)
    with torch.no_grad():
        together = model(**inputs).logits
        for index, length in enumerate((9, 4, 12)):
            alone = model(input_ids=inputs["input_ids"][index : index + 1, :length]).logits[0]
            torch.testing.assert_close(together[index, :length], alone, rtol=0, atol=1e-10)


def test_expressive_maps_are_answered() -> None:
    model = zoo.make("BertForMaskedLM")
    configure(model, "expressive")
    with torch.no_grad():
        maps = model(**batch(9, 4), output_attentions=True).attentions
    assert len(maps) == 2
    for weights in maps:
        assert weights[1, :, :, 4:].eq(0).all()
        torch.testing.assert_close(weights[1, :, :4].sum(-1), torch.ones(4, 4))


@pytest.mark.parametrize(
    "attention", [{"variant": "dot_product"}, EXPRESSIVE, ELLIPTICAL], ids=lambda one: one["variant"]
)
def test_checkpointed_gradients_are_the_gradients(attention: dict[str, Any]) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = zoo.make("BertForTokenClassification", {**zoo.PLAIN, "num_hidden_layers": 4}).double()
        configure(model, **attention)
        # Nothing is checkpointed in eval mode; nothing is to be dropped.
        model.train()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        if checkpointed:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model(**batch(9, 4)).logits.square().sum().backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_two_models_that_take_turns_do_not_mix_their_values() -> None:
    inputs = batch(6, 6)
    alone, mixed = [], []
    for collected in (alone, mixed):
        models = [zoo.make("BertForMaskedLM", seed=seed) for seed in (1, 2)]
        for model in models:
            configure(model, **ELLIPTICAL)
        with torch.no_grad():
            for _ in range(2):
                collected += [model(**inputs).logits for model in (models if collected is mixed else models[:1])]
    torch.testing.assert_close(mixed[0], alone[0])
    torch.testing.assert_close(mixed[2], alone[1])


def test_a_bias_is_no_mask() -> None:
    heads = torch.ones(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"attention_mask: expected which keys are seen, got a bias of torch\.float32"):
        attend_padded("expressive", torch.nn.Module(), heads, heads, heads, torch.zeros(1, 1, 3, 3))
