"""Choosing a model's attention before it is trained, and keeping the choice when it is saved."""

import os
from typing import Any

from transformers import PreTrainedModel

from attnserve.models.attention.elliptical import check_scope
from attnserve.models.huggingface.checkpoint import HuggingFaceError
from attnserve.models.huggingface.inspection import inspect
from attnserve.models.huggingface.interface import NAMES, register
from attnserve.models.huggingface.settings import KEY, Settings, read_settings
from attnserve.records import to_json


def configure(model: PreTrainedModel, variant: str, **numbers: Any) -> None:
    """Have a model attend by a variant from now on, and its config say so.

    Args:
        model: run once, to see that it attends where it can be told to.
        variant: "dot_product", "expressive" or "elliptical".
        numbers: `epsilon` of expressive attention; `scope` and `scaling` of elliptical attention, never guessed.

    Raises:
        HuggingFaceError: the model does not attend so, or could not be exported; names the layer and the reason.
        ValueError: names the field. A causal model that would see its own targets is among these.
    """
    settings = Settings(variant=variant, **numbers)
    found = inspect(model, settings)
    if found.refusals:
        raise HuggingFaceError("; ".join(found.refusals))
    if settings.scope is not None:
        check_scope(settings.scope, causal=found.causal)
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
