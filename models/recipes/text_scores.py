"""What is measured of a language model: for the card of a checkpoint, and for the log of a study."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from tokenizers import Tokenizer

from attnserve.models.recipes.collapse import similarity_columns
from attnserve.models.recipes.conditioning import measure_conditioning
from attnserve.models.recipes.contamination import swap_words
from attnserve.models.recipes.corpus import Corpus, count_words
from attnserve.models.recipes.language import (
    Bits,
    continue_text,
    count_bytes,
    encode_documents,
    model_bits,
    unigram_bits,
)
from attnserve.models.transformer import Transformer

PROMPT = "Returns a new tensor with"
SAMPLE_TOKENS = 64
MEASURED_TOKENS = 16_384
"""Held-out tokens a study scores on, at most."""
NUM_PREFIXES = 512
"""Places at which it is compared what a model says with and without the text after them."""
SWAPPED_SHARE = 0.025
"""Of words, as Elliptical Attention's word swap has it."""


def score(
    model: Transformer,
    tokenizer: Tokenizer,
    corpus: Corpus,
    training: Int[np.ndarray, " n"],
    seed: int,
    *,
    num_sequences: int,
) -> dict[str, Any]:
    """Everything measured after training, as it stands in the card."""
    held_out = encode_documents(tokenizer, corpus.held_out)
    rounding = np.random.default_rng((seed, 2))
    conditioning = measure_conditioning(model, rounding, num_sequences=num_sequences)
    bits, unigram = model_bits(model, tokenizer, held_out), unigram_bits(tokenizer, training, held_out)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bits_per_byte": bits.per_byte,
        "bits_per_token": bits.per_token,
        "unigram_bits_per_byte": unigram.per_byte,
        "unigram_bits_per_token": unigram.per_token,
        "held_out_tokens": len(held_out),
        "training_tokens": len(training),
        "scoring_protocol": (
            f"every held-out token but the first, given those before it in its window of {model.config.max_length} "
            "tokens; the unigram model has the frequencies of the training tokens, plus one each"
        ),
        "sample": {"prompt": PROMPT, "continuation": continue_text(model, tokenizer, PROMPT, SAMPLE_TOKENS)},
        "conditioning": dataclasses.asdict(conditioning),
    }


def measure_text(
    model: Transformer, tokenizer: Tokenizer, corpus: Corpus, generator: np.random.Generator
) -> dict[str, float | None]:
    """Bits per byte of held-out text, clean and swapped, with and without the future; how alike steps become."""
    held_out = encode_documents(tokenizer, corpus.held_out)[:MEASURED_TOKENS]
    swapped = [swap_words(document, generator, share=SWAPPED_SHARE) for document in corpus.held_out]
    bits = model_bits(model, tokenizer, held_out)
    length = model.config.max_length
    starts = generator.integers(len(held_out) - length, size=NUM_PREFIXES)
    whole = [held_out[start : start + length] for start in starts]
    # Never the last step, after which there is nothing to see.
    ends = generator.integers(length // 8, length - length // 8, size=NUM_PREFIXES)
    targets = [int(window[end]) for window, end in zip(whole, ends, strict=True)]
    # Without the target itself: a leaky metric reads it, too.
    prefixes = [window[:end] for window, end in zip(whole, ends, strict=True)]
    columns: dict[str, float | None] = {
        "bits_per_byte": bits.per_byte,
        "perplexity_per_word": perplexity_per_word(bits, tokenizer, held_out),
        "bits_per_byte_swapped": model_bits(
            model, tokenizer, encode_documents(tokenizer, swapped)[:MEASURED_TOKENS]
        ).per_byte,
        "bits_whole": _bits_of_next(model, whole, ends, targets),
        "bits_prefix": _bits_of_next(model, prefixes, ends, targets),
    }
    return columns | similarity_columns(model, whole[:64])


def perplexity_per_word(bits: Bits, tokenizer: Tokenizer, ids: Int[np.ndarray, " n"]) -> float:
    """What a word of `ids` costs as perplexity, comparable with models of words: their bits, over words and lines."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    return math.exp(bits.per_byte * count_bytes(tokenizer, ids) * math.log(2) / count_words([text]))


@torch.no_grad()
def _bits_of_next(
    model: Transformer, sequences: list[NDArray[np.int64]], lengths: Int[np.ndarray, " S"], targets: list[int]
) -> float:
    """Mean bits of what follows the first `lengths[i]` tokens of sequence i, whatever else the model is shown of it."""
    total = 0.0
    for first in range(0, len(sequences), 64):
        chunk = slice(first, first + 64)
        answers = model.predict(sequences[chunk])
        for logits, length, target in zip(answers, lengths[chunk], targets[chunk], strict=True):
            total -= float(torch.log_softmax(logits[length - 1].double(), -1)[target])
    return total / len(sequences) / math.log(2)
