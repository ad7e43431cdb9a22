"""What a dry run finds in models of every class, and what it refuses, each with its reason."""

from typing import Any

import pytest
import torch

from attnserve.models.huggingface.inspection import inspect
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
        "classes of its own (FALCON_ATTENTION_CLASSES: eager, sdpa, flash_attention_2)",
    ),
    "GptOssForCausalLM": (
        {**zoo.WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        "layer 0: attention sinks",
    ),
    "SwinForImageClassification": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 16, "patch_size": 2, "window_size": 4},
        "layer 0: a mask of torch.float32: scores with a bias",
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
    "Wav2Vec2ForSequenceClassification": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
        "reads input_values: expected a model that reads input_ids or pixel_values",
    ),
}
ENCODERS = ("Albert", "Bert", "Camembert", "DistilBert", "Electra", "ModernBert", "Roberta", "T5", "XLMRoberta")
ENCODERS += ("DeiT", "Dinov2", "ViT")
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
    assert {layer.has_bias for layer in found.layers} == {name.startswith("T5")}
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


@pytest.mark.parametrize(
    ("name", "variant", "reason"),
    [
        ("T5ForTokenClassification", "expressive", "a bias by distance, which expressive attention does not add"),
        ("AlbertForMaskedLM", "elliptical", "elliptical attention compares layers, and these are one module"),
    ],
)
def test_what_a_variant_cannot_do_is_refused(name: str, variant: str, reason: str) -> None:
    numbers = {"scope": "sequence", "scaling": "max"} if variant == "elliptical" else {}
    (refusal,) = inspect(zoo.make(name), Settings(variant=variant, **numbers)).refusals
    assert reason in refusal


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
