"""Options that every recipe has, and what is made of them: attention, settings, folder, the command of the card.

A recipe changes defaults with `parser.set_defaults` after adding them; help texts follow.
"""

import argparse
import platform
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import attnserve
from attnserve.checkpoint_files import CONFIG_FILE
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.elliptical import SCALINGS, SCOPES
from attnserve.models.attention.layer import AttentionConfig
from attnserve.models.checkpoint import save_checkpoint
from attnserve.models.config import POSITIONS, layers_of
from attnserve.models.recipes.training import OPTIMIZERS, TrainingSettings
from attnserve.models.transformer import Transformer

DEFAULT_RATES = {"sgd": 0.3, "adamw": 0.003}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add a group of options that shape the model."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--variant", choices=tuple(VARIANTS), default="expressive", help="how layers attend (default: %(default)s)"
    )
    model.add_argument(
        "--layers",
        type=int,
        help="number of layers; none is 1, or 2 if elliptical, whose layer 0 is dot-product (default: %(default)s)",
    )
    model.add_argument("--heads", type=int, default=1, help="heads per layer (default: %(default)s)")
    model.add_argument("--width", type=int, default=32, help="size of the residual stream (default: %(default)s)")
    model.add_argument("--mlp-ratio", type=float, default=4.0, help="MLP size / width (default: %(default)s)")
    model.add_argument("--bias", action="store_true", help="biases in linear layers and norms (default: off)")
    model.add_argument(
        "--positions",
        choices=POSITIONS,
        default="orthogonal",
        help="how a step knows where it is (default: %(default)s)",
    )
    model.add_argument(
        "--rotary-base",
        type=float,
        default=10_000.0,
        help="rotary frequencies are base^(-2e / head size); below 1 they exceed one radian per step "
        "(default: %(default)s)",
    )
    model.add_argument("--scale", type=float, help="factor on q.k (default: 1 / sqrt(head size))")
    model.add_argument(
        "--epsilon", type=float, default=0.0, help="added to the row sum of expressive attention (default: %(default)s)"
    )
    model.add_argument(
        "--window", type=int, default=0, help="keys a query sees, its own included; 0 is all (default: %(default)s)"
    )
    model.add_argument(
        "--scope",
        choices=SCOPES,
        help="elliptical: steps the metric is made of (default: prefix if the model is causal, else sequence)",
    )
    model.add_argument("--scaling", choices=SCALINGS, help="elliptical: norm of the metric (default: max)")


def attention_of(arguments: argparse.Namespace, *, causal: bool) -> tuple[AttentionConfig, ...]:
    """The layers that the options name.

    Raises:
        ValueError: an option makes no sense, or none with the variant; names it.
    """
    elliptical = arguments.variant == "elliptical"
    layers = (2 if elliptical else 1) if arguments.layers is None else arguments.layers
    if elliptical and layers < 2:
        raise ValueError(f"layers: layer 0 of an elliptical model is dot-product; expected at least 2, got {layers}")
    every: dict[str, Any] = {"scale": arguments.scale, "window": arguments.window}
    own: dict[str, Any] = {"epsilon": arguments.epsilon, "scope": arguments.scope, "scaling": arguments.scaling}
    if elliptical:
        scope = arguments.scope or ("prefix" if causal else "sequence")
        own |= {"scope": scope, "scaling": arguments.scaling or "max"}
    return layers_of(arguments.variant, layers, **every, **own)


def shape_of(arguments: argparse.Namespace, *, causal: bool) -> dict[str, Any]:
    """The fields of `TransformerConfig` that the model options name.

    Raises:
        ValueError: names the option.
    """
    return {
        "width": arguments.width,
        "num_heads": arguments.heads,
        "attention": attention_of(arguments, causal=causal),
        "causal": causal,
        "positions": arguments.positions,
        "rotary_base": arguments.rotary_base,
        "mlp_ratio": arguments.mlp_ratio,
        "bias": arguments.bias,
    }


def add_optimizer_options(training: argparse._ArgumentGroup) -> None:
    """Add the options of `TrainingSettings`, but `--steps`."""
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="(default: %(default)s)")
    training.add_argument("--lr", type=float, help="learning rate (default: 0.3 for sgd, 0.003 for adamw)")
    training.add_argument("--momentum", type=float, default=0.8, help="of sgd (default: %(default)s)")
    training.add_argument("--warmup", type=int, default=50, help="steps of rising rate (default: %(default)s)")
    training.add_argument("--cooldown", type=int, default=0, help="last steps, of falling rate (default: %(default)s)")


def settings_of(arguments: argparse.Namespace) -> TrainingSettings:
    """The settings that the options name.

    Raises:
        ValueError: names the option.
    """
    return TrainingSettings(
        steps=arguments.steps,
        optimizer=arguments.optimizer,
        lr=DEFAULT_RATES[arguments.optimizer] if arguments.lr is None else arguments.lr,
        momentum=arguments.momentum,
        warmup=arguments.warmup,
        cooldown=arguments.cooldown,
    )


def add_run_options(training: argparse._ArgumentGroup) -> None:
    """Add `--threads`, `--quiet` and `--out`."""
    training.add_argument(
        "--threads", type=int, default=1, help="of PyTorch; results depend on it (default: %(default)s)"
    )
    training.add_argument("--quiet", action="store_true", help="no progress bars (default: off)")
    training.add_argument("--out", required=True, metavar="FOLDER", help="where the checkpoint goes")


def check_counts(arguments: argparse.Namespace, *options: str) -> None:
    """Refuse a seed below 0, and less than one of `threads` and of `options`.

    Raises:
        ValueError: names the option.
    """
    for option in (*options, "threads"):
        if getattr(arguments, option) < 1:
            raise ValueError(f"{option}: expected an integer >= 1, got {getattr(arguments, option)}")
    if arguments.seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {arguments.seed}")


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
    for option, default in vars(parser.parse_args(["--out", ""])).items():
        value = getattr(arguments, option)
        if option not in ("out", "quiet") and (option in named or value != default):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += ["--" + option.replace("_", "-"), *map(str, values)]
    return shlex.join([*words, "--out", arguments.out])


def save_run(model: Transformer, out: str, card: dict[str, Any], tokenizer: Tokenizer | None = None) -> None:
    """Say what rounding does to the model, and save it with its card."""
    rounding = card["conditioning"]
    print(f"float32 against float64: logits {rounding['logits']:.1e} of the largest, weights {rounding['weights']:.1e}")
    save_checkpoint(model, out, card, tokenizer)
    print(f"saved {out}")


def versions() -> dict[str, str]:
    """Of all that decides what a seed gives, for the card."""
    return {
        "attnserve": attnserve.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
