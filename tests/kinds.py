"""Tiny untrained models of every kind that `tiny` of conftest.py is not. Import as `tests.kinds`.

What no training has touched still obeys every law; its weights are made large enough to tell inputs apart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from attnserve.models.attention.layer import AttentionConfig
from attnserve.models.checkpoint import save_checkpoint
from attnserve.models.config import TransformerConfig, layers_of
from attnserve.models.transformer import Transformer

END = "<end>"
# Byte pairs as byte-level tokenizers spell them: a leading blank is a letter of its own.
MERGES = [("a", "t"), ("c", "at"), ("\u0120", "cat"), ("\u0120", "t"), ("h", "e"), ("\u0120t", "he")]
CLASSES = ("low", "mid", "high")
NUM_FEATURES = 3
MAX_LENGTH = 96


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model, and how it is exported."""

    config: TransformerConfig
    tokenizer: Tokenizer | None = None
    flags: tuple[str, ...] = ()
    """Of `attnserve export`."""


def make_tokenizer(*, ended: bool = False) -> Tokenizer:
    """Reads any text, a byte or a few at a time; `ended` puts a token after it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([END, *letters, *map("".join, MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.add_special_tokens([END])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if ended:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return tokenizer


def list_kinds() -> dict[str, Kind]:
    """By name of the model."""
    sizes: dict[str, Any] = {"max_length": MAX_LENGTH, "width": 16, "mlp_ratio": 2.0}
    features: dict[str, Any] = {**sizes, "num_features": NUM_FEATURES, "causal": False, "num_heads": 2}
    tokenizer = make_tokenizer()
    size = tokenizer.get_vocab_size()
    first = AttentionConfig()
    return {
        # Text that goes on: grouped heads, one table for reading and writing; the graph chooses what comes next.
        "text": Kind(
            config=TransformerConfig(
                **sizes,
                vocabulary_size=size,
                num_heads=4,
                num_key_heads=2,
                positions="rotary",
                tied_embeddings=True,
                attention=(first, AttentionConfig(variant="expressive", epsilon=0.001)),
            ),
            tokenizer=tokenizer,
            flags=("--top-k", "7"),
        ),
        # Vectors, one answer for all of them, from a row of their own.
        "leading": Kind(
            config=TransformerConfig(
                **features,
                task="classify_sequence",
                num_classes=len(CLASSES),
                pooling="first",
                labels=CLASSES,
                attention=layers_of("elliptical", 2, scope="sequence", scaling="mean"),
            )
        ),
        # The same as their mean, in half precision.
        "halves": Kind(
            config=TransformerConfig(
                **features,
                task="classify_sequence",
                num_classes=4,
                pooling="mean",
                attention=layers_of("expressive", 2, epsilon=0.001),
            ),
            flags=("--precision", "float16", "--top-k", "2"),
        ),
        # A class for every token of a text, and a token at its end that nobody wrote; weights in int8.
        "tagger": Kind(
            config=TransformerConfig(
                **sizes,
                vocabulary_size=size,
                num_heads=2,
                causal=False,
                task="classify_token",
                num_classes=len(CLASSES),
                labels=CLASSES,
                attention=(first,),
            ),
            tokenizer=make_tokenizer(ended=True),
            flags=("--precision", "int8", "--top-k", "1"),
        ),
    }


def save_kinds(folder: Path) -> dict[str, Kind]:
    """Write a checkpoint of every kind, under its name; returns them."""
    kinds = list_kinds()
    for seed, (name, kind) in enumerate(kinds.items()):
        model = Transformer(kind.config, seed=seed)
        with torch.no_grad():
            # Initial weights attend to everything alike; larger ones tell the keys apart.
            for block in model.layers:
                block.attention.query.weight *= 4
                block.attention.key.weight *= 4
        save_checkpoint(model, folder / name, {"purpose": "tests"}, kind.tokenizer)
    return kinds
