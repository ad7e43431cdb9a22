"""Where a row stands in its sequence. Tables are tensors of the checkpoint, never regenerated from a seed."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnserve.models.config import TransformerConfig


class AddedPositions(nn.Module):
    """A table [P, D] added to the embedding: fixed, sinusoidal or orthogonal, or learned from an orthogonal start."""

    table: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        make = sinusoidal_table if config.positions == "sinusoidal" else orthogonal_table
        table = make(config.num_positions, config.width)
        if config.positions == "learned":
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(self, x: Float[Tensor, "T D"], positions: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Add each row's entry."""
        return x + self.table[positions]


def orthogonal_table(num_positions: int, width: int) -> Float[Tensor, "P D"]:
    """Random rows of norm sqrt(D); orthogonal while P <= D, beyond that only nearly so: columns are cut off."""
    size = max(num_positions, width)
    basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    table = basis[:num_positions, :width].float()
    scaled: Tensor = table * (math.sqrt(width) / table.norm(dim=1, keepdim=True))
    return scaled


def sinusoidal_table(num_positions: int, width: int) -> Float[Tensor, "P D"]:
    """Channel 2i is sin(position * 10000^(-2i / D)), channel 2i + 1 the cosine of the same angle.

    Source: Vaswani et al., "Attention is all you need", arXiv 1706.03762, section 3.5.
    """
    channel = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * 10_000.0 ** (-(channel - channel % 2) / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class RotaryPositions(nn.Module):
    """Rotation of query and key by position: channel pairs (e, e + E/2), angle position * base^(-2e / E).

    Source: Su et al., "RoFormer", arXiv 2104.09864, in the half-split layout of GPT-NeoX.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        half = config.channels // 2
        frequency = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(config.num_positions, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cosine", angle.cos().float())
        self.register_buffer("sine", angle.sin().float())

    def at(self, positions: Int[Tensor, " T"]) -> Callable[[Tensor], Tensor]:
        """The rotation of [T, H, E] rows standing at `positions`."""
        cosine, sine = self.cosine[positions][:, None], self.sine[positions][:, None]

        def rotate(x: Float[Tensor, "T H E"]) -> Float[Tensor, "T H E"]:
            low, high = x.chunk(2, dim=-1)
            return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)

        return rotate
