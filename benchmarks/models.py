"""The reference model of every figure: 6 layers, d 256, 8 heads, MLP x4, vocabulary 1000, causal, seed 0.

GPUs get a large one beside it: 12 layers, d 768, 12 heads, otherwise the same.
"""

from pathlib import Path

from attnserve.models import Transformer, TransformerConfig, layers_of, save_checkpoint

OPTIONS = {"dot_product": {}, "expressive": {}, "elliptical": {"scope": "prefix", "scaling": "max"}}


MAX_LENGTH = 1024
VOCABULARY_SIZE = 1000


def reference_config(
    variant: str, max_length: int = MAX_LENGTH, vocabulary_size: int = VOCABULARY_SIZE
) -> TransformerConfig:
    """The reference model with one of the variants; its weights are the same whatever its longest sequence."""
    return TransformerConfig(
        vocabulary_size=vocabulary_size,
        max_length=max_length,
        width=256,
        num_heads=8,
        attention=layers_of(variant, 6, **OPTIONS[variant]),
        positions="rotary",
    )


def large_config(variant: str) -> TransformerConfig:
    """The large model with one of the variants."""
    return TransformerConfig(
        vocabulary_size=1000,
        max_length=MAX_LENGTH,
        width=768,
        num_heads=12,
        attention=layers_of(variant, 12, **OPTIONS[variant]),
        positions="rotary",
    )


def save_reference(
    variant: str, folder: Path, max_length: int = MAX_LENGTH, vocabulary_size: int = VOCABULARY_SIZE
) -> None:
    """Write the reference model as a checkpoint."""
    save_checkpoint(Transformer(reference_config(variant, max_length, vocabulary_size)), folder)


def save_large(variant: str, folder: Path) -> None:
    """Write the large model as a checkpoint."""
    save_checkpoint(Transformer(large_config(variant)), folder)
