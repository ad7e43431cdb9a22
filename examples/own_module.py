"""A module of one's own with expressive attention: trained for a moment, exported, asked.

    python own_module.py REPOSITORY/model/1

Its sequences say two symbols in turn, such as 3 5 3 5 3, so the next one is the one before the last.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attnserve.export import export_module
from attnserve.models import Attention, AttentionConfig
from attnserve.packing import pack
from attnserve.runtime import Runtime

NUM_SYMBOLS, MAX_LENGTH, WIDTH, NUM_HEADS = 8, 16, 32, 2


class Block(nn.Module):
    """x + attention(norm(x)), on packed rows [T, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention = Attention(AttentionConfig(variant="expressive"), head_size=WIDTH // NUM_HEADS, causal=True)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """The residual stream after this layer."""
        query, key, value = self.project(self.norm(x)).unflatten(-1, (3, NUM_HEADS, -1)).unbind(1)
        attended: Tensor = self.output(self.attention(query, key, value, slots).flatten(1))
        return x + attended


class Echo(nn.Module):
    """Logits of the next symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(NUM_SYMBOLS, WIDTH)
        self.places = nn.Embedding(MAX_LENGTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, inputs: Tensor, positions: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        """Of `rows` alone: [R, W]."""
        x: Tensor = self.symbols(inputs) + self.places(positions)
        for block in self.blocks:
            x = block(x, slots)
        return functional.linear(x[rows], self.symbols.weight)


(place,) = sys.argv[1:]
torch.manual_seed(0)
module = Echo()
random = np.random.default_rng(0)
optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
for _ in range(150):
    pairs = [random.choice(NUM_SYMBOLS, 2, replace=False) for _ in range(32)]
    packed = pack([np.resize(pair, random.integers(3, MAX_LENGTH + 1)) for pair in pairs])
    inputs, positions, slots = map(torch.from_numpy, (packed.inputs, packed.positions, packed.slots))
    targets = (positions >= 2).nonzero()[:, 0]
    loss = functional.cross_entropy(module(inputs, positions, slots, targets - 1), inputs[targets])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

export_module(
    module, [3, 5, 3], task="next_token", vocabulary_size=NUM_SYMBOLS, max_length=MAX_LENGTH, destination=place
)
# What the service does: sequences of any lengths in one packed batch, no torch.
batch = pack([np.array([3, 5, 3]), np.array([6, 1, 6, 1])])
logits = Runtime(place).run(batch, np.array([2, 6]), ["logits"])["logits"]
print("after 3 5 3 comes {}, after 6 1 6 1 comes {}".format(*logits.argmax(1)))
