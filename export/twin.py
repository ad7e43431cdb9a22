"""Twins: a checkpoint's weights under another attention, to see what the attention does.

Nobody has trained these weights for it. Where a twin differs from its model, the attention made the difference; how
well it would do after training, it does not say.
"""

import dataclasses
from pathlib import Path

from attnserve.interface import check_choice
from attnserve.models import Transformer
from attnserve.models.attention import VARIANTS
from attnserve.publish import check_destination

# Those with a metric need to be told how it is estimated, which is never guessed.
CHOICES = tuple(name for name, variant in VARIANTS.items() if variant.metric_op is None)


def make_twin(model: Transformer, variant: str) -> Transformer:
    """The same weights, scale, windows and softcaps with one variant in every layer, in eval mode.

    Raises:
        ValueError: there is no such variant to be had, or every layer has it already.
    """
    check_choice("twin", variant, CHOICES)
    if all(layer.variant == variant for layer in model.config.attention):
        raise ValueError(f"twin: expected another variant than that of every layer, got {variant!r}")
    layers = tuple(
        layer
        if layer.variant == variant
        else dataclasses.replace(layer, variant=variant, scope=None, scaling=None, epsilon=0.0)
        for layer in model.config.attention
    )
    twin = Transformer(dataclasses.replace(model.config, attention=layers))
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def warn_of_twin(model: Transformer, variant: str) -> str:
    """What a reader of a twin's answers must know."""
    trained = dict.fromkeys(layer.variant for layer in model.config.attention)
    return (
        f"a twin: {variant} attention with the weights of other attention ({', '.join(trained)}), "
        "which no training has fitted to it"
    )


def place_twins(destination: Path, variant: str | None) -> dict[Path, str | None]:
    """Where repository/model/version and its twin, if there is to be one, belong, and what takes the attention's place.

    The twin, repository/model-variant/version, comes first, because it may be refused.

    Raises:
        ValueError: there is no such variant to be had.
        ExportError: one of the places is none, or taken.
    """
    places: dict[Path, str | None] = {}
    if variant is not None:
        check_choice("twin", variant, CHOICES)
        name = f"{destination.parent.name}-{variant.replace('_', '-')}"
        places[destination.parent.parent / name / destination.name] = variant
    places[destination] = None
    for place in places:
        check_destination(place)
    return places
