"""What a module may look like from outside, and what golden alone would not notice."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnserve.export.subject import ModuleError, find_layers
from attnserve.interface import Interface
from attnserve.models import Attention, AttentionConfig

INTERFACE = {"task": "next_token", "max_length": 8, "vocabulary_size": 5}
POOLED = {"task": "classify_sequence", "max_length": 8, "vocabulary_size": 5, "num_classes": 5}


class Odd(nn.Module):
    """One layer, with `style` saying what is odd about it."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.embedding, self.project, self.output = nn.Embedding(5, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.attention = Attention(AttentionConfig(), head_size=4, causal=True)
        self.block, self.last = nn.Identity(), nn.Linear(8, 5)

    def forward(self, inputs: Tensor, positions: Tensor, slots: Tensor, rows: Tensor | None = None) -> Tensor:
        x = self.embedding(inputs)
        query, key, value = self.project(x).unflatten(-1, (3, 2, -1)).unbind(1)
        if self.style == "names arguments":
            attended = self.attention(slots=slots, value=value, key=key, query=query)
            x = self.block(x + self.output(input=attended.flatten(1)))
        else:
            x = self.block(x + self.output(self.attention(query, key, value, slots).flatten(1)))
        if self.style == "takes one sequence":
            assert len(slots) == 1
        return self.last(x if self.style == "overlooks rows" or rows is None else x[rows])


def layers_in(style: str, interface: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    module = Odd(style).eval()
    return find_layers(module, Interface(**interface), np.array([1, 2, 3]), blocks=[module.block])


def test_arguments_may_be_named() -> None:
    (named,), (plain,) = (layers_in(style, INTERFACE) for style in ("names arguments", "plain"))
    assert (named.num_heads, named.num_key_heads, named.head_size, named.value_size) == (2, 2, 4, 4)
    assert named.projection.weight.equal(plain.projection.weight)


@pytest.mark.parametrize(
    ("style", "interface", "message"),
    [
        ("overlooks rows", INTERFACE, r"one row when rows is \[row\], got shape \[5, 5\]"),
        ("takes one sequence", INTERFACE, r"on two of the example it raised AssertionError"),
        ("overlooks rows", POOLED | {"pooling": "last"}, "on the example it raised RuntimeError"),
        ("answers rows", POOLED | {"pooling": "mean"}, "on the example it raised RuntimeError"),
    ],
)
def test_what_golden_would_not_notice_is_refused(style: str, interface: dict[str, Any], message: str) -> None:
    with pytest.raises(ModuleError, match=f"^module: .*{message}"):
        layers_in(style, interface)
