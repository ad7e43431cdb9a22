"""What a language model is trained on and scored by: tokens of a text, windows of them, bits per byte."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

from attnserve.models.recipes.corpus import SEPARATOR
from attnserve.models.recipes.training import Batch
from attnserve.models.transformer import Transformer

NUM_BYTES = 256
WINDOWS_PER_PASS = 32


def train_tokenizer(documents: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer: it reads any text, its tokens tile the text, and decoding gives the text back.

    The vocabulary is smaller than asked for if the documents hold no more pairs that occur twice.

    Raises:
        ValueError: a vocabulary without room for every byte.
    """
    if vocabulary_size < NUM_BYTES:
        raise ValueError(
            f"vocabulary_size: expected an integer >= {NUM_BYTES}, one token per byte, got {vocabulary_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    # No normalizer and no post-processor: what either drops or adds would belong to no token, or to no character.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((document + SEPARATOR for document in documents), trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> NDArray[np.int64]:
    """[n]: ids of all documents, one after the other, a blank line after each."""
    encodings = tokenizer.encode_batch([document + SEPARATOR for document in documents])
    return np.concatenate([np.array(encoding.ids, np.int64) for encoding in encodings])


def count_bytes(tokenizer: Tokenizer, ids: Int[np.ndarray, " n"]) -> int:
    """UTF-8 bytes of the text of these tokens."""
    # The byte-level alphabet has one character per byte.
    sizes = np.array([len(tokenizer.id_to_token(index) or "") for index in range(tokenizer.get_vocab_size())])
    return int(sizes[ids].sum())


def windows(ids: Int[np.ndarray, " n"], length: int, batch: int, generator: np.random.Generator) -> Iterator[Batch]:
    """Endless training batches of `batch` windows of `length` tokens, from anywhere in the text.

    Raises:
        ValueError: the text is no longer than a window.
    """
    if len(ids) <= length:
        raise ValueError(f"files: expected more than {length} tokens to train on, got {len(ids)}")
    return _draw_windows(ids, length, batch, generator)


def _draw_windows(ids: NDArray[np.int64], length: int, batch: int, generator: np.random.Generator) -> Iterator[Batch]:
    slots = torch.arange(batch * length).view(batch, length)
    positions = torch.arange(length).repeat(batch)
    while True:
        starts = generator.integers(len(ids) - length, size=batch)
        tokens = torch.from_numpy(np.stack([ids[start : start + length + 1] for start in starts]))
        yield Batch(
            inputs=tokens[:, :-1].flatten(),
            positions=positions,
            slots=slots,
            rows=slots.flatten(),
            targets=tokens[:, 1:].flatten(),
        )


@dataclass(frozen=True, kw_only=True)
class Bits:
    """How many bits it takes to say what comes next, with a model's probabilities."""

    per_byte: float
    """Of UTF-8: comparable between tokenizers."""
    per_token: float


def model_bits(model: Transformer, tokenizer: Tokenizer, ids: Int[np.ndarray, " n"]) -> Bits:
    """Every token but the first, given those before it in its window; windows of `max_length` stand side by side."""
    length = model.config.max_length
    starts = range(0, len(ids) - 1, length)
    total = 0.0
    for first in range(0, len(starts), WINDOWS_PER_PASS):
        parts = [ids[start : start + length + 1] for start in starts[first : first + WINDOWS_PER_PASS]]
        total += sum(_nats(model, parts))
    return _bits_of(total, tokenizer, ids)


@torch.no_grad()
def _nats(model: Transformer, parts: list[NDArray[np.int64]]) -> list[float]:
    logits = model.predict([part[:-1] for part in parts])
    return [
        functional.cross_entropy(rows.double(), torch.from_numpy(part[1:]), reduction="sum").item()
        for rows, part in zip(logits, parts, strict=True)
    ]


def unigram_bits(tokenizer: Tokenizer, training: Int[np.ndarray, " m"], ids: Int[np.ndarray, " n"]) -> Bits:
    """The same tokens with the frequencies of the training text (plus one each), whatever stands before them."""
    counts = 1.0 + np.bincount(training, minlength=tokenizer.get_vocab_size())
    return _bits_of(float(-np.log(counts / counts.sum())[ids[1:]].sum()), tokenizer, ids)


def _bits_of(nats: float, tokenizer: Tokenizer, ids: NDArray[np.int64]) -> Bits:
    bits = nats / np.log(2)
    return Bits(per_byte=float(bits / count_bytes(tokenizer, ids[1:])), per_token=float(bits / (len(ids) - 1)))


@torch.no_grad()
def continue_text(model: Transformer, tokenizer: Tokenizer, prompt: str, num_tokens: int) -> str:
    """What the model writes after `prompt`, always taking the most likely token."""
    ids: list[int] = list(tokenizer.encode(prompt).ids)
    given = len(ids)
    for _ in range(num_tokens):
        (logits,) = model.predict([ids[-model.config.max_length :]])
        ids.append(int(logits[-1].argmax()))
    text: str = tokenizer.decode(ids[given:], skip_special_tokens=False)
    return text


def initialise_embedding(weight: Float[torch.Tensor, "W D"]) -> None:
    """Shrink a tied embedding in place, so that the first logits are about 1 and not about sqrt(D)."""
    with torch.no_grad():
        weight *= weight.shape[1] ** -0.5
