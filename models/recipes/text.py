"""Recipe `text`: train a language model on English, score it on text held out, and save it with its tokenizer and card.

`attnserve train text --out FOLDER` reads the docstrings of numpy and torch, which are installed wherever models are
trained; `checkpoints/train.sh` holds the command of the committed checkpoint.
"""

import argparse
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from attnserve.models.config import TransformerConfig
from attnserve.models.recipes.corpus import HELD_OUT_EVERY, Corpus, read_files, read_packages, read_wikitext
from attnserve.models.recipes.language import (
    encode_documents,
    initialise_embedding,
    model_bits,
    train_tokenizer,
    windows,
)
from attnserve.models.recipes.options import (
    add_model_options,
    add_optimizer_options,
    add_watch_options,
    build_model,
    check_counts,
    settings_of,
    shape_of,
    watch_of,
)
from attnserve.models.recipes.runs import Trained, add_run_options, command_of, save_run, train_as_asked, versions
from attnserve.models.recipes.summary import Measure
from attnserve.models.recipes.text_scores import measure_text, score
from attnserve.models.recipes.training import TrainingSettings
from attnserve.models.transformer import Transformer

SUMMARY = "a language model of documentation English, which reads text"
PACKAGES = ("numpy", "torch")
VALIDATION_TOKENS = 20_000
"""That a score on the way is taken over, at most."""
STEPS = 2800
TASK = "text"
_SMALL = "--layers 2"
COMPARED = {
    "dot-product": f"--variant dot_product {_SMALL}",
    "expressive": f"--variant expressive {_SMALL}",
    "elliptical, prefix": f"--variant elliptical {_SMALL}",
    "elliptical, random metric": f"--variant elliptical {_SMALL} --metric random",
    "elliptical, leaky": f"--variant elliptical {_SMALL} --scope sequence-leaky",
}
"""What `--quick` compares: a row and its options."""
QUICK = {"steps": 200}
LESSON = (
    "Lost are bits: by swapped words, and by hiding what comes after a byte, which costs a leaky metric what it has "
    "seen; a random one differs by chance."
)
MEASURES = (
    Measure(header="bits per byte", column="bits_per_byte", kind="number"),
    Measure(header="lost by swapped words", column="bits_per_byte_swapped", kind="number", minus="bits_per_byte"),
    Measure(header="lost without the future", column="bits_prefix", kind="number", minus="bits_whole"),
    Measure(header="CPU s", column="cpu_seconds", kind="seconds"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `attnserve train text`."""
    text = parser.add_argument_group("text")
    text.add_argument(
        "--files",
        nargs="+",
        metavar="FILE",
        help="UTF-8 text whose documents stand between blank lines, or folders of such files (default: docstrings of "
        "numpy and torch)",
    )
    text.add_argument(
        "--wikitext", metavar="FOLDER", help="the three files of WikiText-103 or -2, instead of --files (default: none)"
    )
    text.add_argument(
        "--vocabulary-size", type=int, default=1024, help="tokens, at most; 256 is one per byte (default: %(default)s)"
    )
    add_model_options(parser)
    attention = parser.add_argument_group("attention")
    attention.add_argument(
        "--windows", nargs="+", type=int, metavar="N", help="a window for each layer (default: --window for all)"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--seed", type=int, default=0, help="of weights, data and scores (default: %(default)s)")
    training.add_argument("--batch", type=int, default=4, help="windows of text per step (default: %(default)s)")
    training.add_argument("--max-length", type=int, default=256, help="tokens of a window (default: %(default)s)")
    add_optimizer_options(training, steps=STEPS)
    training.add_argument(
        "--sequences", type=int, default=200, help="to measure conditioning over (default: %(default)s)"
    )
    add_watch_options(training, score="minus the bits per byte of text that is neither trained nor tested on")
    add_run_options(training)
    parser.set_defaults(layers=3, heads=2, width=96, positions="rotary", optimizer="adamw", warmup=100, cooldown=2000)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model, its tokenizer and its text."""

    model: Transformer
    tokenizer: Tokenizer
    corpus: Corpus
    training: NDArray[np.int64]
    """Ids of the text it was trained on."""
    settings: TrainingSettings
    trained: Trained


def run(arguments: argparse.Namespace) -> int:
    """Train, score, print and save; returns the exit code.

    Raises:
        ValueError: an option has a value that makes no sense, or a file cannot be read; the message names it.
        RuntimeError: training diverged.
    """
    fitted = fit(arguments)
    scores = score(
        fitted.model,
        fitted.tokenizer,
        fitted.corpus,
        fitted.training,
        arguments.seed,
        num_sequences=arguments.sequences,
    )
    card = describe_run(arguments, fitted) | scores
    print(f"held out: {card['bits_per_byte']:.3f} bits per byte; unigram: {card['unigram_bits_per_byte']:.3f}")
    print(f"{card['sample']['prompt']}|{card['sample']['continuation']}")
    save_run(fitted.model, arguments.out, card, fitted.tokenizer)
    return 0


def fit(arguments: argparse.Namespace) -> Fitted:
    """Train a model as the options say.

    Raises:
        ValueError: an option has a value that makes no sense, or a file cannot be read; the message names it.
        RuntimeError: training diverged.
    """
    check_counts(arguments, "batch", "max_length", "sequences")
    settings = settings_of(arguments, steps=STEPS)
    # Nothing here is large enough for the library's threads; forking with them running, it would warn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    corpus = corpus_of(arguments)
    tokenizer = train_tokenizer(corpus.training, arguments.vocabulary_size)
    training = encode_documents(tokenizer, corpus.training)
    # Streams 0, 1, ... of one seed: weights, training data, conditioning, contamination. Adding one disturbs no other.
    data = np.random.default_rng((arguments.seed, 1))
    batches = windows(training, arguments.max_length, arguments.batch, data)
    model = build_model(config_of(arguments, tokenizer), arguments)
    initialise_embedding(model.token_embedding.weight)
    validation = encode_documents(tokenizer, corpus.validation or corpus.held_out)[:VALIDATION_TOKENS]
    watch = watch_of(arguments, lambda: -model_bits(model, tokenizer, validation).per_byte)
    trained = train_as_asked(model, batches, settings, arguments, watch=watch, command=command(arguments))
    return Fitted(
        model=model,
        tokenizer=tokenizer,
        corpus=corpus,
        training=training,
        settings=settings,
        trained=trained,
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and measure what stands in the log: a value per column, None where there is none."""
    fitted = fit(arguments)
    generator = np.random.default_rng((arguments.seed, 3))
    return {
        **measure_text(fitted.model, fitted.tokenizer, fitted.corpus, generator),
        "steps": fitted.trained.num_steps,
        "cpu_seconds": round(fitted.trained.cpu_seconds, 1),
    }


def corpus_of(arguments: argparse.Namespace) -> Corpus:
    """The text, from the options; if scores are taken on the way, with documents for them."""
    if arguments.wikitext is not None and arguments.files is not None:
        raise ValueError(f"wikitext: expected it or --files, got both: {arguments.wikitext}, {arguments.files}")
    if arguments.wikitext is not None:
        return read_wikitext(arguments.wikitext)
    corpus = read_packages(PACKAGES) if arguments.files is None else read_files(arguments.files)
    if not arguments.score_every:
        return corpus
    # Every 20th of what is left, the last included: there are at least 19.
    chosen = corpus.training[::-HELD_OUT_EVERY]
    kept = tuple(document for document in corpus.training if document not in set(chosen))
    return dataclasses.replace(corpus, training=kept, validation=chosen)


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


def describe_run(arguments: argparse.Namespace, fitted: Fitted) -> dict[str, Any]:
    """What was trained and how, as it stands in the card."""
    corpus, settings = fitted.corpus, fitted.settings
    return {
        "description": (
            f"{arguments.variant.replace('_', '-')} attention trained to continue documentation English, "
            "byte-level BPE tokens"
        ),
        "recipe": "text",
        "variant": arguments.variant,
        "text": {
            "source": corpus.source,
            "documents": len(corpus.training) + len(corpus.validation) + len(corpus.held_out),
            "characters": corpus.num_characters,
            "held_out": corpus.split,
        },
        "command": command(arguments),
        "seed": arguments.seed,
        "optimizer": f"{settings.optimizer}, rate {settings.lr}",
        "steps": fitted.trained.num_steps,
        "trained_with": versions() | {"tokenizers": tokenizers.__version__},
    }


def command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    return command_of("text", add_arguments, arguments, named=("variant", "seed"))
