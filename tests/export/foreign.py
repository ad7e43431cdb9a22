"""Somebody else's model, with names and habits of its own. Import as `tests.export.foreign`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnserve.interface import Interface
from attnserve.models import Attention, AttentionConfig

WORDS, WIDTH, SIZE, MAX_LENGTH = 11, 12, 3, 9
EXAMPLE = np.array([3, 1, 4, 1, 5])
INTERFACE = Interface(task="next_token", max_length=MAX_LENGTH, vocabulary_size=WORDS)
EXPRESSIVE = AttentionConfig(variant="expressive", epsilon=0.01)
ELLIPTICAL = AttentionConfig(variant="elliptical", scope="prefix", scaling="mean", window=4)


class Mixer(nn.Module):
    """Somebody else's layer: one projection for all, fewer key heads, arguments by name."""

    def __init__(self, config: AttentionConfig, *, heads: int = 4, key_heads: int = 2, between: Any = nn.Identity):
        super().__init__()
        self.sizes = [heads * SIZE, key_heads * SIZE, key_heads * SIZE]
        self.pre = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, sum(self.sizes))
        self.core = Attention(config, head_size=SIZE, causal=True)
        self.between = between(heads * SIZE)
        self.mix = nn.Linear(heads * SIZE, WIDTH)

    def forward(self, x: Tensor, slots: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = self.qkv(self.pre(x)).split(self.sizes, dim=1)
        query, key, value = (part.unflatten(1, (-1, SIZE)) for part in parts)
        heard = self.core(query, key, value=value, slots=slots, previous_value=previous)
        return x + self.mix(self.between(heard.flatten(1))), value


class Foreign(nn.Module):
    """Somebody else's model."""

    def __init__(self, *mixers: Mixer) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(MAX_LENGTH, WIDTH)
        self.stack = nn.ModuleList(mixers or (Mixer(EXPRESSIVE), Mixer(ELLIPTICAL)))
        self.out = nn.Linear(WIDTH, WORDS)

    def order(self) -> list[nn.Module]:
        return list(self.stack)

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def forward(self, words: Tensor, places: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        x, previous = self.words(words) + self.places(places), None
        for block in self.order():
            x, previous = block(x, slots, previous)
        return self.out(self.pick(x, rows))


def foreign(kind: Callable[..., nn.Module] = Foreign, *arguments: Any) -> Any:
    """One of them, with weights that attend to something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = kind(*(argument() if callable(argument) else argument for argument in arguments))
        for mixer in model.modules():
            if isinstance(mixer, Mixer):
                nn.init.normal_(mixer.qkv.weight)
    return model


def mixer(config: AttentionConfig = EXPRESSIVE, **options: Any) -> Callable[[], Mixer]:
    return lambda: Mixer(config, **options)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that an export could leave changed."""
    return {
        "training": [part.training for part in model.modules()],
        "tensors": {name: (tensor.dtype, tensor.clone()) for name, tensor in model.state_dict().items()},
        "identities": {name: id(parameter) for name, parameter in model.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "hooks": [(dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in model.modules()],
        "functions": [(part.attend, part.measure) for part in model.modules() if isinstance(part, Attention)],
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    tensors, others = before["tensors"], after["tensors"]
    assert all(dtype == others[name][0] and torch.equal(old, others[name][1]) for name, (dtype, old) in tensors.items())
    assert {name: after[name] for name in after if name != "tensors"} == {
        name: before[name] for name in before if name != "tensors"
    }


class Named(Foreign):
    """Layers that are no list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self.stack
        del self.stack

    def order(self) -> list[nn.Module]:
        return [self.first, self.second]


class Flat(nn.Module):
    """Layers that are not even modules; `seam` is where their owner lets others see the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.core = Attention(EXPRESSIVE, head_size=SIZE, causal=True)
        self.mix, self.seam, self.out = nn.Linear(WIDTH, WIDTH), nn.Identity(), nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor, places: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        x = self.words(words)
        split = x.unflatten(1, (4, SIZE))
        return self.out(self.seam(x + self.mix(self.core(split, split, split, slots).flatten(1)))[rows])


def normed() -> Any:
    return foreign(Foreign, mixer(between=nn.LayerNorm), mixer(between=nn.LayerNorm))


def hot() -> Any:
    """Overflows before its projection, where NaN is not equal to itself."""
    model = foreign()
    with torch.no_grad():
        model.stack[0].qkv.bias.fill_(float("inf"))
    return model
