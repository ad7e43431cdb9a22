"""Options that every recipe has for its model and its training, and what is made of them.

A recipe changes defaults with `parser.set_defaults` after adding them; help texts follow.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch

from attnserve.models.attention import VARIANTS
from attnserve.models.attention.elliptical import SCALINGS, SCOPES
from attnserve.models.attention.layer import AttentionConfig
from attnserve.models.config import POSITIONS, TransformerConfig, layers_of
from attnserve.models.recipes.random_metric import METRICS, draw_metrics
from attnserve.models.recipes.training import OPTIMIZERS, TrainingSettings, Watch
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
    model.add_argument(
        "--positions-std",
        type=float,
        default=1.0,
        help="of the entries of the table that is added, which orthogonal ones begin with (default: %(default)s)",
    )
    model.add_argument("--scale", type=float, help="factor on q.k (default: 1 / sqrt(head size))")
    model.add_argument(
        "--gain", type=float, default=1.0, help="factor on the scale, an inverse temperature (default: %(default)s)"
    )
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
    model.add_argument(
        "--metric",
        choices=METRICS,
        default=METRICS[0],
        help="elliptical: random ones are a baseline that no checkpoint can hold (default: %(default)s)",
    )


def attention_of(arguments: argparse.Namespace, *, causal: bool) -> tuple[AttentionConfig, ...]:
    """The layers that the options name.

    Raises:
        ValueError: an option makes no sense, or none with the variant; names it.
    """
    elliptical = arguments.variant == "elliptical"
    layers = (2 if elliptical else 1) if arguments.layers is None else arguments.layers
    if elliptical and layers < 2:
        raise ValueError(f"layers: layer 0 of an elliptical model is dot-product; expected at least 2, got {layers}")
    if arguments.metric != METRICS[0] and not elliptical:
        raise ValueError(f"metric: only elliptical attention has one; expected {METRICS[0]}, got {arguments.metric}")
    if not math.isfinite(arguments.gain) or arguments.gain <= 0:
        raise ValueError(f"gain: expected a finite number > 0, got {arguments.gain}")
    scale = arguments.scale
    if arguments.gain != 1:
        scale = arguments.gain * (math.sqrt(arguments.heads / arguments.width) if scale is None else scale)
    every: dict[str, Any] = {"scale": scale, "window": arguments.window}
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


def build_model(config: TransformerConfig, arguments: argparse.Namespace) -> Transformer:
    """The untrained model of the options; with `--metric random` its metrics are drawn anew in every pass."""
    model = Transformer(config, seed=arguments.seed)
    if model.positions is not None and arguments.positions_std != 1:
        with torch.no_grad():
            model.positions.table *= arguments.positions_std
    if arguments.metric == "random":
        # Stream 9 of the seed, which no recipe uses for anything else.
        draw_metrics(model, torch.Generator().manual_seed(10 * arguments.seed + 9))
    return model


def add_optimizer_options(training: argparse._ArgumentGroup, *, steps: int) -> None:
    """Add the options of `TrainingSettings`; `steps` is how many there are unless the options say so."""
    training.add_argument("--steps", type=int, help=f"optimiser steps (default: {steps})")
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="(default: %(default)s)")
    training.add_argument("--lr", type=float, help="learning rate (default: 0.3 for sgd, 0.003 for adamw)")
    training.add_argument("--momentum", type=float, default=0.8, help="of sgd (default: %(default)s)")
    training.add_argument("--warmup", type=int, default=50, help="steps of rising rate (default: %(default)s)")
    training.add_argument("--cooldown", type=int, default=0, help="last steps, of falling rate (default: %(default)s)")


def add_watch_options(training: argparse._ArgumentGroup, *, score: str) -> None:
    """Add the options of `Watch`; `score` says what is scored."""
    training.add_argument(
        "--score-every", type=int, default=0, help=f"steps from one score to the next, {score}; 0 is none (default: 0)"
    )
    training.add_argument("--stop-at", type=float, help="two scores in a row that end training (default: none do)")
    training.add_argument(
        "--patience",
        type=int,
        default=0,
        help="scores in a row without a better one that end training; 0 is never (default: %(default)s)",
    )


def watch_of(arguments: argparse.Namespace, score: Callable[[], float]) -> Watch | None:
    """When to score, from the options.

    Raises:
        ValueError: names the option.
    """
    if arguments.score_every < 0:
        raise ValueError(f"score_every: expected an integer >= 0, got {arguments.score_every}")
    if arguments.score_every == 0:
        for option in ("stop_at", "patience"):
            if getattr(arguments, option):
                raise ValueError(f"{option}: nothing is scored without --score-every, got {getattr(arguments, option)}")
        return None
    return Watch(score=score, every=arguments.score_every, stop_at=arguments.stop_at, patience=arguments.patience)


def settings_of(arguments: argparse.Namespace, *, steps: int) -> TrainingSettings:
    """The settings that the options name; `steps` if they name none.

    Raises:
        ValueError: names the option.
    """
    return TrainingSettings(
        steps=steps if arguments.steps is None else arguments.steps,
        optimizer=arguments.optimizer,
        lr=DEFAULT_RATES[arguments.optimizer] if arguments.lr is None else arguments.lr,
        momentum=arguments.momentum,
        warmup=arguments.warmup,
        cooldown=arguments.cooldown,
    )


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
