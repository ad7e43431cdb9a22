"""Somebody else's weights: a ViT or DeiT with timm's tensor names becomes a bundle.

    python deit.py WEIGHTS.safetensors REPOSITORY/model/1 --heads 3 --variant elliptical --scope sequence --scaling max

Sizes are read off the tensors. What no state dict carries, heads and the way they attend, has to be said.
`random_deit.py` writes weights for a trial.

Shape letters: C channels, p pixels along a side of a patch, P patches, D width, F = C * p * p, T packed rows.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from attnserve.export import export_module
from attnserve.models import Attention, AttentionConfig, layers_of

NORM_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the tensors say about the model."""

    width: int
    num_channels: int
    patch_size: int
    num_patches: int
    num_layers: int
    mlp_size: int
    num_classes: int

    @property
    def num_features(self) -> int:
        """Numbers in a patch, F."""
        return self.num_channels * self.patch_size**2


# An ordinary ViT, written for packed rows. Its names are timm's, so that the mapping below is short.


class SelfAttention(nn.Module):
    """Projections around `Attention`; returns its values too, which elliptical attention needs in the next layer."""

    def __init__(self, width: int, num_heads: int, layer: AttentionConfig) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = Attention(layer, head_size=width // num_heads, causal=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, slots: Tensor, previous_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attended rows [T, D] and their values [T, H, E]."""
        # Rows of qkv: all heads of the queries, then of the keys, then of the values.
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        attended = self.attention(query, key, value, slots, previous_value=previous_value)
        return self.proj(attended.flatten(1)), value


class Mlp(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, width: int, mlp_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_size)
        self.fc2 = nn.Linear(mlp_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """Row by row."""
        rows: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return rows


class Block(nn.Module):
    """x + f(norm(x)), around attention and around the MLP."""

    def __init__(self, sizes: Sizes, num_heads: int, layer: AttentionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=NORM_EPSILON)
        self.attn = SelfAttention(sizes.width, num_heads, layer)
        self.norm2 = nn.LayerNorm(sizes.width, eps=NORM_EPSILON)
        self.mlp = Mlp(sizes.width, sizes.mlp_size)

    def forward(self, x: Tensor, slots: Tensor, previous_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream [T, D] after this block, and its attention's values."""
        attended, value = self.attn(self.norm1(x), slots, previous_value)
        x = x + attended
        return x + self.mlp(self.norm2(x)), value


class Deit(nn.Module):
    """A ViT that answers from its class token."""

    def __init__(self, sizes: Sizes, num_heads: int, layers: Sequence[AttentionConfig]) -> None:
        super().__init__()
        if num_heads < 1 or sizes.width % num_heads:
            raise ValueError(f"heads: expected a number that divides the width {sizes.width}, got {num_heads}")
        self.sizes = sizes
        self.patch_embed = nn.Linear(sizes.num_features, sizes.width)
        self.cls_token = nn.Parameter(torch.zeros(sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1 + sizes.num_patches, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes, num_heads, layer) for layer in layers)
        self.norm = nn.LayerNorm(sizes.width, eps=NORM_EPSILON)
        self.head = nn.Linear(sizes.width, sizes.num_classes)

    def forward(self, inputs: Tensor, positions: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        """Logits of `rows`, from patches [T, F] of any number of images; row 0 of each is the class token's."""
        x = self.patch_embed(inputs)
        x = torch.where((positions == 0)[:, None], self.cls_token, x) + self.pos_embed[positions]
        value = None
        for block in self.blocks:
            x, value = block(x, slots, value)
        logits: Tensor = self.head(self.norm(x[rows]))
        return logits


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is none; a pickle runs code when loaded, so it never is.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"weights: expected a safetensors file, got {path} ({error}). A pickle (.pth, .pt, .bin) runs code when "
            "loaded: convert it where you trust it, with safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        ) from None
    return tensors


def read_sizes(tensors: Mapping[str, Tensor]) -> Sizes:
    """Sizes from the shapes of the tensors that have them all.

    Raises:
        ValueError: one is missing or of another number of axes; names it.
    """

    def shape(name: str, *axes: str) -> torch.Size:
        if name not in tensors:
            raise ValueError(f"{name}: missing; expected shape [{', '.join(axes)}]")
        if tensors[name].ndim != len(axes):
            raise ValueError(f"{name}: expected shape [{', '.join(axes)}], got {list(tensors[name].shape)}")
        return tensors[name].shape

    width, num_channels, patch_size, _ = shape("patch_embed.proj.weight", "D", "C", "p", "p")
    return Sizes(
        width=width,
        num_channels=num_channels,
        patch_size=patch_size,
        num_patches=shape("pos_embed", "1", "1 + P", "D")[1] - 1,
        num_layers=len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}),
        mlp_size=shape("blocks.0.mlp.fc1.weight", "mlp size", "D")[0],
        num_classes=shape("head.weight", "classes", "D")[0],
    )


def expected_shapes(sizes: Sizes) -> dict[str, list[int]]:
    """Every tensor of such a model by its name in timm."""
    width, mlp_size = sizes.width, sizes.mlp_size
    shapes = {
        "cls_token": [1, 1, width],
        "pos_embed": [1, 1 + sizes.num_patches, width],
        "patch_embed.proj.weight": [width, sizes.num_channels, sizes.patch_size, sizes.patch_size],
        "patch_embed.proj.bias": [width],
    }
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linears |= {"mlp.fc1": (mlp_size, width), "mlp.fc2": (width, mlp_size)}
    for index in range(sizes.num_layers):
        for name, (outputs, inputs) in linears.items():
            shapes[f"blocks.{index}.{name}.weight"] = [outputs, inputs]
            shapes[f"blocks.{index}.{name}.bias"] = [outputs]
    for norm in [*(f"blocks.{index}.norm{number}" for index in range(sizes.num_layers) for number in (1, 2)), "norm"]:
        shapes |= {f"{norm}.weight": [width], f"{norm}.bias": [width]}
    return shapes | {"head.weight": [sizes.num_classes, width], "head.bias": [sizes.num_classes]}


def map_tensors(tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The state dict of `Deit`, in float32.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or does not hold finite numbers; names it.
    """
    expected = expected_shapes(sizes)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"{name}: missing; expected shape {expected[name]}")
        if name not in expected:
            raise ValueError(f"{name}: unknown tensor; expected those of a plain ViT, whose class token alone answers")
        if list(tensors[name].shape) != expected[name]:
            raise ValueError(f"{name}: expected shape {expected[name]}, got {list(tensors[name].shape)}")
        if not tensors[name].is_floating_point() or not tensors[name].isfinite().all():
            raise ValueError(f"{name}: expected finite floating-point numbers, got others")
    mapped = {name.replace("patch_embed.proj.", "patch_embed."): tensor.float() for name, tensor in tensors.items()}
    # A convolution whose stride is its kernel is a linear map of each patch, its numbers in the kernel's order.
    mapped["patch_embed.weight"] = mapped["patch_embed.weight"].flatten(1)
    mapped["cls_token"] = mapped["cls_token"][0, 0]
    mapped["pos_embed"] = mapped["pos_embed"][0]
    return mapped


def load_deit(tensors: Mapping[str, Tensor], num_heads: int, **attention: Any) -> Deit:
    """The model of `tensors`; `attention` is `variant` and the other fields of `AttentionConfig`."""
    sizes = read_sizes(tensors)
    # Elliptical attention compares values with those of the layer before, so layer 0 is dot-product.
    model = Deit(sizes, num_heads, layers_of(num_layers=sizes.num_layers, **attention))
    model.load_state_dict(map_tensors(tensors, sizes))
    return model.eval()


def cut_patches(image: NDArray[np.floating[Any]], sizes: Sizes) -> NDArray[np.float32]:
    """Feature rows [P, F] of an image [C, H, W], normalised as in training: what a client sends.

    Patches in reading order; within one all rows of the first channel, then of the next, as a kernel [C, p, p] is laid
    out in memory. The class token's row is no client's business: the service puts it before them.

    Raises:
        ValueError: another number of channels or patches.
    """
    side = sizes.patch_size
    fits = image.ndim == 3 and image.shape[0] == sizes.num_channels and not any(size % side for size in image.shape[1:])
    if not fits or image[0].size != sizes.num_patches * side**2:
        raise ValueError(
            f"image: expected [{sizes.num_channels}, H, W] of {sizes.num_patches} patches of {side} x {side} pixels, "
            f"got {list(image.shape)}"
        )
    channels, height, width = image.shape
    grid = image.reshape(channels, height // side, side, width // side, side)
    return grid.transpose(1, 3, 0, 2, 4).reshape(sizes.num_patches, sizes.num_features).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export; what is wrong is said in one line."""
    parser = argparse.ArgumentParser(description="Export a ViT or DeiT with timm's tensor names.")
    parser.add_argument("weights", type=Path, help="safetensors file")
    parser.add_argument("destination", type=Path, help="REPOSITORY/model/version; must not exist")
    parser.add_argument("--heads", type=int, required=True, help="per layer; no tensor says how many there are")
    parser.add_argument("--variant", required=True, help="how it was trained to attend; no tensor says that either")
    parser.add_argument("--scope", help="of elliptical attention: sequence, for a model that sees the whole image")
    parser.add_argument("--scaling", help="of elliptical attention: max or mean")
    parser.add_argument("--precision", default="float32", help="float32, float16, bfloat16 or int8 (default: float32)")
    parser.add_argument("--portable", action="store_true", help="inline the function bodies")
    parser.add_argument("--labels", type=Path, help="text file, a class per line")
    parser.add_argument("--image", type=Path, help=".npy of [C, H, W], normalised as in training (default: noise)")
    parser.add_argument("--request", type=Path, help="write the image as the body of a request to this file")
    options = parser.parse_args(arguments)
    try:
        export_deit(options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def export_deit(options: argparse.Namespace) -> None:
    """Weights to bundle, and an image to the body of a request; a ValueError names the option or tensor."""
    tensors = read_weights(options.weights)
    model = load_deit(tensors, options.heads, variant=options.variant, scope=options.scope, scaling=options.scaling)
    sizes = model.sizes
    if options.image is not None:
        patches = cut_patches(np.load(options.image), sizes)
    else:
        noise = np.random.default_rng(0).normal(size=(sizes.num_patches, sizes.num_features))
        patches = noise.astype(np.float32)
    verified = export_module(
        model,
        patches,
        task="classify_sequence",
        pooling="first",
        leading_row=True,
        destination=options.destination,
        max_length=sizes.num_patches,
        num_classes=sizes.num_classes,
        labels=None if options.labels is None else options.labels.read_text("utf-8").splitlines(),
        card={"description": f"ViT with {options.variant} attention, from {options.weights.name}"},
        precision=options.precision,
        portable=options.portable,
        report=print,
    )
    print(verified.table)
    if options.request is not None:
        options.request.write_text(json.dumps({"sequences": [patches.tolist()]}), "utf-8")
        print(f"request    {options.request}")


if __name__ == "__main__":
    main()
