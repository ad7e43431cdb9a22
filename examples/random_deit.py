"""Random weights with the tensor names of timm's ViT and DeiT, to try `deit.py` without a download.

    python random_deit.py WEIGHTS.safetensors

Images of 3 x 16 x 16 pixels, patches of 4 x 4, width 24, 3 layers, 10 classes; 1, 2, 3 or 4 heads divide the width.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NUM_CHANNELS, PATCH_SIZE, NUM_PATCHES = 3, 4, 16
WIDTH, MLP_SIZE, NUM_LAYERS, NUM_CLASSES = 24, 48, 3, 10


def random_weights(*, seed: int = 0) -> dict[str, Tensor]:
    """A state dict as timm names it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def draw(*shape: int, spread: float, mean: float = 0.0) -> Tensor:
        return mean + spread * torch.randn(shape, generator=generator)

    def add_linear(name: str, num_outputs: int, *inputs: int) -> None:
        weight = draw(num_outputs, *inputs, spread=1.0)
        # Twice as large as at the start of training, when heads attend to everything alike.
        tensors[f"{name}.weight"] = 2 * weight / weight[0].numel() ** 0.5
        tensors[f"{name}.bias"] = draw(num_outputs, spread=0.1)

    def add_norm(name: str) -> None:
        tensors[f"{name}.weight"] = draw(WIDTH, spread=0.1, mean=1.0)
        tensors[f"{name}.bias"] = draw(WIDTH, spread=0.1)

    tensors["cls_token"] = draw(1, 1, WIDTH, spread=1.0)
    tensors["pos_embed"] = draw(1, 1 + NUM_PATCHES, WIDTH, spread=1.0)
    add_linear("patch_embed.proj", WIDTH, NUM_CHANNELS, PATCH_SIZE, PATCH_SIZE)
    for index in range(NUM_LAYERS):
        add_norm(f"blocks.{index}.norm1")
        add_linear(f"blocks.{index}.attn.qkv", 3 * WIDTH, WIDTH)
        add_linear(f"blocks.{index}.attn.proj", WIDTH, WIDTH)
        add_norm(f"blocks.{index}.norm2")
        add_linear(f"blocks.{index}.mlp.fc1", MLP_SIZE, WIDTH)
        add_linear(f"blocks.{index}.mlp.fc2", WIDTH, MLP_SIZE)
    add_norm("norm")
    add_linear("head", NUM_CLASSES, WIDTH)
    return tensors


def main() -> None:
    """Write them; a file that is there stays as it is."""
    parser = argparse.ArgumentParser(description="Write random weights with the tensor names of timm's ViT and DeiT.")
    parser.add_argument("weights", type=Path, help="safetensors file to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers (default: 0)")
    options = parser.parse_args()
    if options.weights.exists():
        parser.exit(1, f"{parser.prog}: weights: {options.weights} exists; expected a new name\n")
    save_file(random_weights(seed=options.seed), options.weights)


if __name__ == "__main__":
    main()
