"""Small Hugging Face models with random weights: one of each class that is claimed, and of those that are refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from transformers import PreTrainedModel

WORDS = 61
# Weights of a deviation at which attention is far from uniform: with transformers' own 0.02 errors would hide.
SPREAD = 0.15
PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": WORDS,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
WINDOWED = {**GROUPED, "sliding_window": 5}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "vocab_size": WORDS, "pad_token_id": 0}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": WORDS, "max_position_embeddings": 48}
MODERN = {**PLAIN, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": WORDS}
OPT |= {"max_position_embeddings": 48, "word_embed_proj_dim": 32, "pad_token_id": 1, "bos_token_id": 2}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = {**PLAIN, **LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2}
DEEPSEEK |= {"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_shared_experts": 1}
SHARED = {**PLAIN, "embedding_size": 16}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
IMAGE |= {"image_size": 16, "patch_size": 4, "num_channels": 3}

MODELS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": PLAIN,
    "BertForSequenceClassification": {**PLAIN, "num_labels": 3},
    "BertForTokenClassification": {**PLAIN, "num_labels": 3},
    "RobertaForMaskedLM": {**PLAIN, "pad_token_id": 1},
    "RobertaForSequenceClassification": {**PLAIN, "pad_token_id": 1, "num_labels": 3},
    "RobertaForTokenClassification": {**PLAIN, "pad_token_id": 1, "num_labels": 3},
    "XLMRobertaForTokenClassification": {**PLAIN, "pad_token_id": 1, "num_labels": 3},
    "CamembertForSequenceClassification": {**PLAIN, "pad_token_id": 1, "num_labels": 3},
    "DistilBertForMaskedLM": DISTIL,
    "DistilBertForSequenceClassification": {**DISTIL, "num_labels": 3},
    "DistilBertForTokenClassification": {**DISTIL, "num_labels": 3},
    "ElectraForTokenClassification": {**PLAIN, "embedding_size": 16, "num_labels": 3},
    "ElectraForSequenceClassification": {**PLAIN, "embedding_size": 16, "num_labels": 3},
    "ModernBertForMaskedLM": MODERN,
    "ModernBertForSequenceClassification": {**MODERN, "classifier_pooling": "mean", "num_labels": 3},
    "ModernBertForTokenClassification": {**MODERN, "num_labels": 3},
    "GPT2LMHeadModel": GPT2,
    "GPT2ForSequenceClassification": {**GPT2, "num_labels": 3},
    "OPTForCausalLM": OPT,
    "GPTNeoXForCausalLM": PLAIN,
    "LlamaForCausalLM": GROUPED,
    "LlamaForSequenceClassification": {**GROUPED, "num_labels": 3},
    "LlamaForTokenClassification": {**GROUPED, "num_labels": 3},
    "MistralForCausalLM": WINDOWED,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 8},
    "Qwen3MoeForCausalLM": {**EXPERTS, "head_dim": 8},
    "GemmaForCausalLM": {**GROUPED, "head_dim": 8},
    "Gemma2ForCausalLM": {**WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma3ForCausalLM": {**WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Phi3ForCausalLM": GROUPED,
    "Olmo2ForCausalLM": GROUPED,
    "CohereForCausalLM": GROUPED,
    "Starcoder2ForCausalLM": GROUPED,
    "SmolLM3ForCausalLM": GROUPED,
    "MixtralForCausalLM": {**GROUPED, "num_local_experts": 4},
    "DeepseekV3ForCausalLM": DEEPSEEK,
    "AlbertForMaskedLM": SHARED,
    "AlbertForSequenceClassification": {**SHARED, "num_labels": 3},
    "T5ForTokenClassification": {**T5, "num_labels": 3},
    "ViTForImageClassification": IMAGE,
    "DeiTForImageClassification": IMAGE,
    "DeiTForImageClassificationWithTeacher": IMAGE,
    "Dinov2ForImageClassification": IMAGE,
}


def make(name: str, numbers: dict[str, Any] | None = None, seed: int = 1) -> PreTrainedModel:
    """A model of a class, in eval mode."""
    kind = getattr(transformers, name)
    config = kind.config_class(**(MODELS[name] if numbers is None else numbers))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))
    return model


def save(folder: Path, name: str, change: Callable[[PreTrainedModel], object] = lambda _: None, **numbers: Any) -> Path:
    """Write such a model as its users do."""
    model = make(name, {**MODELS.get(name, {}), **numbers})
    change(model)
    model.save_pretrained(folder)
    return folder
