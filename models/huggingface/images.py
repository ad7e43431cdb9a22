"""Models of images: a step is a patch, its vector the pixels that the model's convolution reads there.

What a model does before its layers is a convolution that takes every patch by itself, and numbers that do not depend on
the image: positions, a bias, and rows that go before the patches, such as [cls]. These numbers are what it makes of an
image of zeros, so nothing here knows what they are called, or how many rows there are.
"""

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from attnserve.models.huggingface.wide import widened

PIXELS = "pixel_values"


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How a model cuts an image into steps."""

    embeddings: str
    """Name of the part that makes rows of an image."""
    convolution: nn.Conv2d = field(repr=False)
    image_shape: tuple[int, int, int]
    """Channels, height and width."""
    base: Float[Tensor, "N D"] = field(repr=False)
    """Rows of an image of zeros, in float64."""

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.convolution.kernel_size
        return height, width

    @property
    def num_patches(self) -> int:
        """Of an image."""
        (_, height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return (height // patch_height) * (width // patch_width)

    @property
    def num_leading(self) -> int:
        """Rows before the patches, such as [cls]."""
        return len(self.base) - self.num_patches

    @property
    def num_steps(self) -> int:
        """That a client sends: all rows but the first of those before the patches, which the packer adds."""
        return len(self.base) - min(1, self.num_leading)

    @property
    def num_features(self) -> int:
        """Numbers of a patch: channels, then lines, then columns."""
        height, width = self.patch_shape
        return self.image_shape[0] * height * width

    def fold(self, features: Float[Tensor, "P F"]) -> Float[Tensor, "1 channels height width"]:
        """The image of the first patches, line by line; black where there are no more."""
        rest = features.new_zeros(self.num_patches - len(features), self.num_features)
        columns = torch.cat([features, rest]).T[None]
        return functional.fold(columns, self.image_shape[1:], self.patch_shape, stride=self.patch_shape)


def find_patches(model: PreTrainedModel) -> Patches | None:
    """How a model of images makes steps; None if it has no `embeddings` that do by one convolution of patches."""
    name = next((name for name, _ in model.named_modules() if name.rpartition(".")[2] == "embeddings"), None)
    if name is None or model.main_input_name != PIXELS:
        return None
    found = [part for part in model.get_submodule(name).modules() if isinstance(part, nn.Conv2d)]
    if len(found) != 1 or found[0].kernel_size != found[0].stride or any(found[0].padding):
        return None
    shape = image_shape_of(model)
    with torch.no_grad(), widened():
        embeddings = copy.deepcopy(model.get_submodule(name)).cpu().double()
        rows = embeddings(torch.zeros(1, *shape, dtype=torch.float64))
    if not isinstance(rows, Tensor) or rows.ndim != 3:
        return None
    return Patches(embeddings=name, convolution=found[0], image_shape=shape, base=rows[0])


def image_shape_of(model: PreTrainedModel) -> tuple[int, int, int]:
    """Channels, height and width of what a model of images reads."""
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return model.config.num_channels, height, width


class PatchRows(nn.Module):
    """Rows of packed patches, in the place of a model's embeddings.

    Args:
        patches: how these cut an image.
    """

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        weight = patches.convolution.weight
        projection = nn.Linear(patches.num_features, len(weight), bias=False, device="meta", dtype=weight.dtype)
        projection.weight = nn.Parameter(weight.detach().flatten(1), requires_grad=False)
        # Where the models look for the type that they compute in.
        self.patch_embeddings = nn.ModuleDict({"projection": projection})
        self.num_leading = patches.num_leading
        self.base: Tensor
        self.base_rest: Tensor
        self.register_buffer("base", patches.base.float())
        # Sums of two numbers of the file, which golden has in float64.
        self.register_buffer("base_rest", (patches.base - patches.base.float()).float())

    def forward(self, features: Float[Tensor, "T F"], positions: Int[Tensor, " T"]) -> Float[Tensor, "1 T D"]:
        """Rows; what stands before the patches reads nothing."""
        base = self.base[positions] + self.base_rest[positions]
        patches = base + self.patch_embeddings["projection"](features)
        return torch.where((positions >= self.num_leading)[:, None], patches, base)[None]
