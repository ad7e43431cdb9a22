"""Choosing a model's attention before it is trained, and keeping the choice when it is saved."""

import os
from typing import Any

from transformers import PreTrainedModel

from attnserve.models.huggingface.interface import NAMES, register
from attnserve.models.huggingface.settings import KEY, Settings, read_settings
from attnserve.records import to_json


def configure(model: PreTrainedModel, variant: str, **numbers: Any) -> None:
    """Have a model attend by a variant from now on, and its config say so.

    Args:
        model: any that `inspect` has nothing against.
        variant: "dot_product", "expressive" or "elliptical".
        numbers: `epsilon` of expressive attention; `scope` and `scaling` of elliptical attention, never guessed.

    Raises:
        ValueError: names the field.
    """
    settings = Settings(variant=variant, **numbers)
    register()
    model.set_attn_implementation(NAMES[variant])
    setattr(model.config, KEY, to_json(settings))


def save(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """`save_pretrained`, with the model's attention in `config.attnserve`.

    Raises:
        ValueError: it attends elliptically and its config does not say how.
    """
    variants = {name: variant for variant, name in NAMES.items()}
    variant = variants.get(str(model.config._attn_implementation), "dot_product")
    found = read_settings(model.config)
    if found is None or found.variant != variant:
        found = Settings(variant=variant)
    setattr(model.config, KEY, to_json(found))
    model.save_pretrained(folder)
