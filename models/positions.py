"""Where a row stands in its sequence. Tables are tensors of the checkpoint, never regenerated from a seed."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnserve.models.config import TransformerConfig


class AddedPositions(nn.Module):
    """A table [max_length, D] added to the embedding: fixed and orthogonal, or learned from that start."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = max(config.max_length, config.width)
        # Rows of norm sqrt(D); orthogonal while max_length <= D, beyond that only nearly so: columns are cut off.
        basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
        table = basis[: config.max_length, : config.width].float()
        table = table * (math.sqrt(config.width) / table.norm(dim=1, keepdim=True))
        if config.positions == "learned":
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(self, x: Float[Tensor, "T D"], positions: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Add each row's entry."""
        return x + self.table[positions]


class RotaryPositions(nn.Module):
    """Rotation of query and key by position: channel pairs (e, e + E/2), angle position * base^(-2e / E).

    Source: Su et al., "RoFormer", arXiv 2104.09864, in the half-split layout of GPT-NeoX.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        half = config.head_size // 2
        frequency = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(config.max_length, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cosine", angle.cos().float())
        self.register_buffer("sine", angle.sin().float())

    def at(self, positions: Int[Tensor, " T"]) -> Callable[[Tensor], Tensor]:
        """The rotation of [T, H, E] rows standing at `positions`."""
        cosine, sine = self.cosine[positions][:, None], self.sine[positions][:, None]

        def rotate(x: Float[Tensor, "T H E"]) -> Float[Tensor, "T H E"]:
            low, high = x.chunk(2, dim=-1)
            return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)

        return rotate
