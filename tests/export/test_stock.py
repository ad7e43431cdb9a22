"""The stock model, to which a packed one is held."""

import numpy as np
import pytest
import torch

from attnserve.export.golden import check_stock
from attnserve.export.stock import StockModel
from attnserve.export.subject import ModuleError
from attnserve.interface import Interface
from attnserve.models.huggingface import PackedModel, Settings, inspect
from tests.models.huggingface import zoo

SEQUENCE = np.array([5, 2, 9, 40])
INTERFACE = Interface(task="next_token", vocabulary_size=zoo.WORDS, max_length=48)


def test_it_answers_in_float64_with_maps() -> None:
    answer = StockModel(zoo.make("LlamaForCausalLM"), "dot_product").answer(SEQUENCE)
    (logits,), (maps,) = answer.logits, answer.maps
    assert (logits.dtype, maps.dtype) == (torch.float64, torch.float64)
    assert (logits.shape, maps.shape) == ((4, zoo.WORDS), (4, 2, 4, 4))
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 2, 4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_what_means_padding_is_no_word() -> None:
    stock = StockModel(zoo.make("BertForMaskedLM"), "dot_product")
    assert stock.readable(np.array([0, 3, 0])).tolist() == [1, 3, 1]
    without = StockModel(zoo.make("BertForMaskedLM", {**zoo.PLAIN, "pad_token_id": None}), "dot_product")
    assert without.readable(np.array([0, 3, 0])).tolist() == [0, 3, 0]


def test_a_packed_model_that_is_another_one_is_refused() -> None:
    model = zoo.make("GPT2LMHeadModel")
    truth = StockModel(model, "dot_product").answer(SEQUENCE).logits
    packed = PackedModel(model, inspect(model), Settings()).double()
    check_stock(packed, INTERFACE, [SEQUENCE], truth)
    with torch.no_grad():
        packed.model.transformer.wte.weight[5, 0] += 1e-3
    with pytest.raises(ModuleError, match="packed, it does not answer as its stock implementation does"):
        check_stock(packed, INTERFACE, [SEQUENCE], truth)
