"""Recipe `text`: train a language model on English, score it on text held out, and save it with its tokenizer and card.

`attnserve train text --out FOLDER` reads the docstrings of numpy and torch, which are installed wherever models are
trained; `checkpoints/train.sh` holds the command of the committed checkpoint.
"""

import argparse
import dataclasses
import os
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.conditioning import measure_conditioning
from attnserve.models.recipes.corpus import HELD_OUT_EVERY, Corpus, read_files, read_packages
from attnserve.models.recipes.language import (
    continue_text,
    encode_documents,
    initialise_embedding,
    model_bits,
    train_tokenizer,
    unigram_bits,
    windows,
)
from attnserve.models.recipes.options import (
    add_model_options,
    add_optimizer_options,
    add_run_options,
    check_counts,
    check_folder,
    command_of,
    save_run,
    settings_of,
    shape_of,
    versions,
)
from attnserve.models.recipes.training import TrainingSettings, train
from attnserve.models.threads import num_threads
from attnserve.models.transformer import Transformer

SUMMARY = "a language model of documentation English, which reads text"
PACKAGES = ("numpy", "torch")
PROMPT = "Returns a new tensor with"
SAMPLE_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `attnserve train text`."""
    text = parser.add_argument_group("text")
    text.add_argument(
        "--files",
        nargs="+",
        metavar="FILE",
        help="UTF-8 text whose documents stand between blank lines (default: docstrings of numpy and torch)",
    )
    text.add_argument("--vocabulary-size", type=int, default=1024, help="tokens, at most (default: %(default)s)")
    add_model_options(parser)
    attention = parser.add_argument_group("attention")
    attention.add_argument(
        "--windows", nargs="+", type=int, metavar="N", help="a window for each layer (default: --window for all)"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--seed", type=int, default=0, help="of weights, data and scores (default: %(default)s)")
    training.add_argument("--steps", type=int, default=2800, help="optimiser steps (default: %(default)s)")
    training.add_argument("--batch", type=int, default=4, help="windows of text per step (default: %(default)s)")
    training.add_argument("--max-length", type=int, default=256, help="tokens of a window (default: %(default)s)")
    add_optimizer_options(training)
    training.add_argument(
        "--sequences", type=int, default=200, help="to measure conditioning over (default: %(default)s)"
    )
    add_run_options(training)
    parser.set_defaults(layers=3, heads=2, width=96, positions="rotary", optimizer="adamw", warmup=100, cooldown=2000)


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense, or a file cannot be read; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch", "max_length", "sequences")
    settings = settings_of(arguments)
    # Nothing here is large enough for the library's threads; forking with them running, it would warn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    corpus = read_packages(PACKAGES) if arguments.files is None else read_files(arguments.files)
    tokenizer = train_tokenizer(corpus.training, arguments.vocabulary_size)
    training = encode_documents(tokenizer, corpus.training)
    # Streams 0, 1, ... of one seed: weights, training data, conditioning. Adding one disturbs no other.
    data = np.random.default_rng((arguments.seed, 1))
    batches = windows(training, arguments.max_length, arguments.batch, data)
    model = Transformer(config_of(arguments, tokenizer), seed=arguments.seed)
    initialise_embedding(model.token_embedding.weight)
    # Before minutes of training, not after.
    check_folder(arguments.out)
    with num_threads(arguments.threads):
        train(model, batches, settings, progress=not arguments.quiet)
        card = describe_run(arguments, corpus, settings) | score(model, tokenizer, corpus, training, arguments)
    print(f"held out: {card['bits_per_byte']:.3f} bits per byte; unigram: {card['unigram_bits_per_byte']:.3f}")
    print(f"{card['sample']['prompt']}|{card['sample']['continuation']}")
    save_run(model, arguments.out, card, tokenizer)
    return 0


def config_of(arguments: argparse.Namespace, tokenizer: Tokenizer) -> TransformerConfig:
    """The model to train, from the options."""
    shape = shape_of(arguments, causal=True)
    if arguments.windows is not None:
        # A long row is hard to concentrate without an exponential, so lower layers may see less than higher ones.
        layers = shape["attention"]
        if len(arguments.windows) != len(layers):
            raise ValueError(f"windows: expected {len(layers)}, one per layer, got {len(arguments.windows)}")
        shape["attention"] = tuple(
            dataclasses.replace(layer, window=window) for layer, window in zip(layers, arguments.windows, strict=True)
        )
    return TransformerConfig(
        vocabulary_size=tokenizer.get_vocab_size(),
        max_length=arguments.max_length,
        **shape,
        tied_embeddings=True,
    )


def score(
    model: Transformer, tokenizer: Tokenizer, corpus: Corpus, training: NDArray[np.int64], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Everything measured after training, as it stands in the card."""
    held_out = encode_documents(tokenizer, corpus.held_out)
    rounding = np.random.default_rng((arguments.seed, 2))
    conditioning = measure_conditioning(model, rounding, num_sequences=arguments.sequences)
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


def describe_run(arguments: argparse.Namespace, corpus: Corpus, settings: TrainingSettings) -> dict[str, Any]:
    """What was trained and how, as it stands in the card."""
    return {
        "description": (
            f"{arguments.variant.replace('_', '-')} attention trained to continue documentation English, "
            "byte-level BPE tokens"
        ),
        "recipe": "text",
        "variant": arguments.variant,
        "text": {
            "source": corpus.source,
            "documents": len(corpus.training) + len(corpus.held_out),
            "characters": corpus.num_characters,
            "held_out": f"every {HELD_OUT_EVERY}th document",
        },
        "command": command_of("text", add_arguments, arguments, named=("variant", "seed")),
        "seed": arguments.seed,
        "optimizer": f"{settings.optimizer}, rate {settings.lr}",
        "steps": settings.steps,
        "trained_with": versions() | {"tokenizers": tokenizers.__version__},
    }
