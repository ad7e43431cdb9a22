"""The stock model: what the packed one, and with it the bundle, is held to. It knows nothing of packed rows."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from attnserve.export.golden import Answer
from attnserve.models.huggingface.images import PIXELS, Patches, find_patches
from attnserve.models.huggingface.interface import NAMES
from attnserve.models.huggingface.wide import widened


class StockModel:
    """A model as transformers runs it, in float64: one sequence at a time, unpadded, by its own attention.

    Expressive and elliptical attention transformers has none of: they are the padded functions that trained the model.

    Args:
        model: copied.
        variant: how it attends.
    """

    def __init__(self, model: PreTrainedModel, variant: str) -> None:
        self.model = copy.deepcopy(model).double().eval()
        # `eager` alone answers with maps, and knows soft-capped scores.
        self.model.set_attn_implementation("eager" if variant == "dot_product" else NAMES[variant])
        self.patches = find_patches(self.model)
        self.pad = getattr(model.config.get_text_config(), "pad_token_id", None) if self.patches is None else None

    @torch.no_grad()
    def answer(self, sequence: NDArray[Any]) -> Answer:
        """Logits and attention weights of one sequence."""
        with widened():
            if self.patches is None:
                ids = torch.from_numpy(sequence)[None]
                output = self.model(input_ids=ids, output_attentions=True, use_cache=False)
            else:
                output = self._see(self.patches, torch.from_numpy(sequence).double())
        maps = torch.stack([layer[0] for layer in output.attentions]).permute(2, 0, 1, 3)
        return Answer(logits=[output.logits.flatten(0, -2)], maps=[maps])

    def _see(self, patches: Patches, features: Tensor) -> Any:
        """What it says of an image, as far as it goes: rows of patches that are not sent are cut off behind."""
        image = patches.fold(features[patches.num_leading :])
        embeddings = self.model.get_submodule(patches.embeddings)
        handle = embeddings.register_forward_hook(lambda _, __, rows: rows[:, : len(features)])
        try:
            return self.model(**{PIXELS: image}, output_attentions=True)
        finally:
            handle.remove()

    def readable(self, sequence: NDArray[Any]) -> NDArray[Any]:
        """A sequence without the padding's id, which is no part of any: models skip it, each in its own way."""
        if self.pad is None:
            return sequence
        return np.where(sequence == self.pad, (sequence + 1) % self.model.config.get_text_config().vocab_size, sequence)
