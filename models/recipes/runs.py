"""A run: what it is asked to leave behind, its training, the command that repeats it, its checkpoint."""

import argparse
import platform
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import attnserve
from attnserve.checkpoint_files import CONFIG_FILE
from attnserve.models.checkpoint import save_checkpoint
from attnserve.models.recipes.history import History
from attnserve.models.recipes.random_metric import METRICS
from attnserve.models.recipes.resuming import STATE_FILE, Keeper
from attnserve.models.recipes.training import Batch, TrainingSettings, Watch, train
from attnserve.models.transformer import Transformer


def add_run_options(training: argparse._ArgumentGroup) -> None:
    """Add options of how a run goes and where it leaves what."""
    training.add_argument(
        "--threads", type=int, default=1, help="of PyTorch; results depend on it (default: %(default)s)"
    )
    training.add_argument("--quiet", action="store_true", help="no progress bars (default: off)")
    training.add_argument("--out", metavar="FOLDER", help="where the checkpoint goes (default: nowhere)")
    training.add_argument(
        "--log",
        metavar="FILE",
        help="CSV file to add a row of measurements to, unless it has one of the same command (default: none)",
    )
    training.add_argument(
        "--curve", metavar="FILE", help="CSV file for loss, rate and score of every step (default: none)"
    )
    training.add_argument(
        "--save-every",
        type=int,
        default=0,
        help="steps between states in --out, from which the same command goes on; 0 is none (default: %(default)s)",
    )
    training.add_argument(
        "--quick",
        action="store_true",
        help="compare variants with these options, in a minute or two, and print the table (default: off)",
    )
    training.add_argument(
        "--replicas", type=int, default=3, help="seeds of --quick, from --seed on (default: %(default)s)"
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves beside the model."""

    history: History
    cpu_seconds: float
    """Of the process, scores on the way included."""

    @property
    def num_steps(self) -> int:
        """Steps that were done."""
        return len(self.history.losses)


def train_as_asked(
    model: Transformer,
    batches: Iterator[Batch],
    settings: TrainingSettings,
    arguments: argparse.Namespace,
    *,
    watch: Watch | None,
    command: str,
) -> Trained:
    """Train `model`, with a bar, a curve and states to go on from as the options say.

    Raises:
        ValueError: an option makes no sense or a file cannot be written, before any training; names the option.
        RuntimeError: training diverged.
    """
    keeper = None
    if arguments.save_every < 0:
        raise ValueError(f"save_every: expected an integer >= 0, got {arguments.save_every}")
    if arguments.out is not None:
        if arguments.metric != METRICS[0]:
            raise ValueError(f"metric: a checkpoint holds none that is drawn; expected {METRICS[0]}, got random")
        check_folder(arguments.out)
        if arguments.save_every:
            keeper = Keeper(path=Path(arguments.out) / STATE_FILE, every=arguments.save_every, command=command)
    elif arguments.save_every:
        raise ValueError(f"save_every: states are kept in --out; expected 0 without it, got {arguments.save_every}")
    if arguments.curve is not None:
        check_file(arguments.curve, "curve")
    start = time.process_time()
    history = train(model, batches, settings, watch=watch, keeper=keeper, progress=not arguments.quiet)
    cpu_seconds = time.process_time() - start
    if arguments.curve is not None:
        history.write(arguments.curve)
    return Trained(history=history, cpu_seconds=cpu_seconds)


def check_file(path: str, option: str) -> None:
    """Refuse a file that cannot be written; its folder exists afterwards.

    Raises:
        ValueError: names `option`.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("a"):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written: {error}") from None


def check_folder(out: str) -> None:
    """Refuse a folder that holds a checkpoint or cannot be written; it exists afterwards.

    Raises:
        ValueError: names `out`.
    """
    folder = Path(out)
    if (folder / CONFIG_FILE).exists():
        raise ValueError(f"out: {folder} holds a checkpoint; remove it or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: {folder} cannot be written: {error}") from None


NOT_OF_A_RUN = ("out", "log", "curve", "save_every", "quick", "replicas", "quiet")
"""Options that change nothing in what is trained and measured."""


def command_of(
    recipe: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    arguments: argparse.Namespace,
    *,
    named: tuple[str, ...],
) -> str:
    """The command line that repeats this run: every option that is not at its default, and those `named`."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["attnserve", "train", recipe]
    # `parser` knows the recipe's own options only, not those of the command around it.
    for option, default in vars(parser.parse_args([])).items():
        value = getattr(arguments, option)
        if option not in NOT_OF_A_RUN and (option in named or value != default):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += ["--" + option.replace("_", "-"), *map(str, values)]
    return shlex.join([*words, *(["--out", arguments.out] if arguments.out is not None else [])])


def save_run(model: Transformer, out: str, card: dict[str, Any], tokenizer: Tokenizer | None = None) -> None:
    """Say what rounding does to the model, and save it with its card."""
    rounding = card["conditioning"]
    print(f"float32 against float64: logits {rounding['logits']:.1e} of the largest, weights {rounding['weights']:.1e}")
    save_checkpoint(model, out, card, tokenizer)
    # What a killed run would have gone on from.
    (Path(out) / STATE_FILE).unlink(missing_ok=True)
    print(f"saved {out}")


def versions() -> dict[str, str]:
    """Of all that decides what a seed gives, for the card."""
    return {
        "attnserve": attnserve.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
