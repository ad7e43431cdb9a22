"""Layers that share a module get one each, and go on sharing its tensors."""

import torch

from attnserve.models.huggingface.shared import shares_layers, unshare
from tests.models.huggingface import zoo

NUMBERS = {**zoo.SHARED, "num_hidden_layers": 4, "num_hidden_groups": 2}


def test_an_albert_with_a_module_per_layer_is_the_same_model() -> None:
    model = zoo.make("AlbertForMaskedLM", NUMBERS)
    ids = torch.tensor([[5, 9, 2, 40]])
    with torch.no_grad():
        expected = model(ids).logits
        num_tensors = len(list(model.parameters()))
        unshare(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)
    assert len({id(part.config) for part in model.modules() if hasattr(part, "config")}) == 1
    groups = model.albert.encoder.albert_layer_groups
    assert len({id(group) for group in groups}) == 4
    # None is a copy, and none has changed its place: the first two layers are one group, the last two another.
    assert len(list(model.parameters())) == num_tensors
    weights = [group.albert_layers[0].ffn.weight for group in groups]
    assert weights[0] is weights[1]
    assert weights[1] is not weights[2]
    assert weights[2] is weights[3]


def test_others_share_nothing() -> None:
    assert shares_layers(zoo.make("AlbertForMaskedLM"))
    assert not shares_layers(zoo.make("BertForMaskedLM"))
