"""What a dry run finds in models of every class, and what it refuses, each with its reason."""

from typing import Any

import pytest
import torch

from attnserve.models.huggingface.inspection import inspect, read_mask
from attnserve.models.huggingface.settings import Settings
from tests.models.huggingface import zoo

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LONGROPE |= {"original_max_position_embeddings": 24}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DebertaV2ForSequenceClassification": (zoo.PLAIN, "AttentionInterface: 2 layers, 0 calls"),
    "MPNetForTokenClassification": (zoo.PLAIN, "AttentionInterface: 2 layers, 0 calls"),
    "RemBertForMaskedLM": (zoo.PLAIN, "AttentionInterface: 2 layers, 0 calls"),
    "LongformerForTokenClassification": ({**zoo.PLAIN, "attention_window": 4}, "2 layers, 0 calls"),
    "BloomForCausalLM": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": zoo.WORDS}, "2 layers, 0 calls"),
    "XLNetForTokenClassification": (
        {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": zoo.WORDS},
        "2 layers, 0 calls",
    ),
    "FalconForCausalLM": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": zoo.WORDS},
        "2 layers, 0 calls",
    ),
    "GptOssForCausalLM": (
        {**zoo.WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        "layer 0: attention sinks",
    ),
    "SwinForImageClassification": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 16, "patch_size": 2, "window_size": 4},
        "reads pixel_values: expected a model that reads ids",
    ),
    "Llama4ForCausalLM": (
        {**zoo.GROUPED, "head_dim": 8, "attention_chunk_size": 8, "intermediate_size_mlp": 48, "moe_layers": []},
        "layer 0: a mask that is neither causal nor a window",
    ),
    "BartForSequenceClassification": (
        {
            **{
                f"{part}_{name}": number
                for part in ("encoder", "decoder")
                for name, number in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()
            },
            "d_model": 32,
            "vocab_size": zoo.WORDS,
            "max_position_embeddings": 48,
        },
        "an encoder with a decoder",
    ),
    "Phi3ForCausalLM": (
        {**zoo.GROUPED, "original_max_position_embeddings": 24, "rope_parameters": LONGROPE},
        "rotary positions of type 'longrope'",
    ),
    "LlamaForCausalLM": (
        {**zoo.GROUPED, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rotary positions of type 'dynamic'",
    ),
    "AlbertForMaskedLM": ({**zoo.PLAIN, "embedding_size": 16}, "one that several layers share"),
    "T5ForTokenClassification": (
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": zoo.WORDS},
        "layer 0: scores with a bias",
    ),
}
ENCODERS = ("Bert", "Camembert", "DistilBert", "Electra", "ModernBert", "Roberta", "XLMRoberta")
# What its layers see, where it is not all keys, or all up to the query's own.
WINDOWS = {"MistralForCausalLM": (5, 5), "Gemma2ForCausalLM": (5, 0), "Gemma3ForCausalLM": (5, 5)}
# Half of `local_attention` to either side, and the query's own.
WINDOWS |= dict.fromkeys((name for name in zoo.MODELS if name.startswith("ModernBert")), (0, 5))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_served_class_has_nothing_against_it(name: str) -> None:
    found = inspect(zoo.make(name))
    assert found.refusals == ()
    assert tuple(layer.window for layer in found.layers) == WINDOWS.get(name, (0, 0))
    assert found.causal != name.startswith(ENCODERS)
    assert {layer.num_heads for layer in found.layers} == {4}
    assert {layer.softcap for layer in found.layers} == {50.0 if name.startswith("Gemma2") else 0.0}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_class_is_told_why(name: str) -> None:
    numbers, reason = REFUSED[name]
    (refusal,) = inspect(zoo.make(name, numbers)).refusals
    assert refusal.startswith(f"{name}: ")
    assert reason in refusal


def test_elliptical_attention_is_refused_where_it_means_nothing() -> None:
    settings = Settings(variant="elliptical", scope="prefix", scaling="max")
    (refusal,) = inspect(zoo.make("LlamaForCausalLM"), settings).refusals
    assert "the metric has to come before the rotation" in refusal
    assert inspect(zoo.make("GPT2LMHeadModel"), settings).refusals == ()


def test_a_model_is_left_as_it_was() -> None:
    model = zoo.make("BertForMaskedLM").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspect(model)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_window_that_the_run_does_not_reach_is_found() -> None:
    (first, _) = inspect(zoo.make("MistralForCausalLM", {**zoo.WINDOWED, "sliding_window": 31})).layers
    assert first.window == 31


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda b, h, q, k: k <= q, (True, 0)),
        (lambda b, h, q, k: q >= 0, (False, 0)),
        (lambda b, h, q, k: (k <= q) & (q - k < 6), (True, 6)),
        (lambda b, h, q, k: (q - k).abs() < 6, (False, 6)),
        (lambda b, h, q, k: (k <= q) & (q // 20 == k // 20), (False, -1)),
        (lambda b, h, q, k: (k <= q) | (k < 3), (False, -1)),
        (lambda b, h, q, k: (k <= q) & (k != 2), (False, -1)),
    ],
    ids=["causal", "all", "causal window", "window", "chunks beyond the run", "prefix", "hole"],
)
def test_masks_are_read(function: Any, expected: tuple[bool, int]) -> None:
    steps = torch.arange(12)
    mask = function(0, 0, steps[:, None], steps[None, :]).expand(12, 12)
    found = read_mask(function, mask[None, None], horizon=100)
    assert (found.causal, found.window) == expected
