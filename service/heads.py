"""Heads: the layers and heads of a question, each computed once, and how an answer is put together from them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.question import Question

Array = NDArray[Any]

JOINS = {"mean": np.add, "max": np.maximum, "min": np.minimum}


class Heads:
    """Layers and heads asked for.

    What is computed has a first axis of `num_targets`; `expand` makes of it what was asked for, in that order and as
    often as it was named: a list of one head ten thousand times is a short body.
    """

    def __init__(self, question: Question) -> None:
        reduce = question.reduce
        self.is_paired = question.is_paired
        self.over_heads, self.over_layers = reduce.heads, reduce.layers
        if question.is_paired:
            pairs = np.stack([question.layers, question.heads], axis=1)
            distinct, self._places = np.unique(pairs, axis=0, return_inverse=True)
            self.by_layer = {
                layer: distinct[distinct[:, 0] == layer, 1].tolist() for layer in np.unique(distinct[:, 0]).tolist()
            }
            self.num_pairs = len(distinct)
            # Pairs have one axis, which is put together as heads are, layer after layer.
            self.over_layers = reduce.heads
            self._shape: tuple[int, ...] = (len(distinct),)
        else:
            layers, self._layer_places = np.unique(question.layers, return_inverse=True)
            heads, self._head_places = np.unique(question.heads, return_inverse=True)
            self.by_layer = dict.fromkeys(layers.tolist(), heads.tolist())
            self.num_pairs = len(layers) * len(heads)
            self._shape = (len(layers), len(heads))

    @property
    def is_reduced(self) -> bool:
        """Whether heads or layers are put together."""
        return self.over_heads != "none" or self.over_layers != "none"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the first axes of the answer."""
        if self.is_paired:
            return () if self.over_heads != "none" else ("pair",)
        kept = {"layer": self.over_layers, "head": self.over_heads}
        return tuple(name for name, word in kept.items() if word == "none")

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of `axes`."""
        if self.is_paired:
            return (len(self._places),) * len(self.axes)
        sizes = {"layer": len(self._layer_places), "head": len(self._head_places)}
        return tuple(sizes[name] for name in self.axes)

    @property
    def num_targets(self) -> int:
        """Maps to be computed: each layer and head once, or what they are put together to."""
        if self.is_paired:
            return 1 if self.over_heads != "none" else self.num_pairs
        num_layers, num_heads = self._shape
        return (num_layers if self.over_layers == "none" else 1) * (num_heads if self.over_heads == "none" else 1)

    def targets(self, layer: int) -> slice:
        """Where the maps of a layer's heads are, unless they are put together."""
        before = sum(len(heads) for other, heads in self.by_layer.items() if other < layer)
        return slice(before, before + len(self.by_layer[layer]))

    def expand(self, computed: Array) -> Array:
        """[*shape, ...] from [num_targets, ...]."""
        rest = computed.shape[1:]
        if self.is_paired:
            return computed.reshape(rest) if self.over_heads != "none" else computed[self._places]
        if self.over_layers == "none":
            wide = computed.reshape(self._shape[0], -1, *rest)[self._layer_places]
            return wide[:, 0] if self.over_heads != "none" else wide[:, self._head_places]
        return computed.reshape(rest) if self.over_heads != "none" else computed[self._head_places]

    def expand_others(self, computed: Array) -> Array:
        """[..., heads asked for] from [..., distinct heads of a layer]."""
        return computed[..., self._head_places]

    def expand_layers(self, computed: dict[int, Any]) -> Array:
        """What is of layers, per layer or pair asked for."""
        values = np.stack([computed[layer] for layer in self.by_layer])
        if self.is_paired:
            of_pair = np.repeat(np.arange(len(values)), [len(heads) for heads in self.by_layer.values()])
            return values[of_pair[self._places]]
        return values[self._layer_places]

    def fold(self, compute: Callable[[int, list[int]], Array], at_once: int) -> Array:
        """[num_targets, ...], put together while it is computed.

        Args:
            compute: [heads, ...] of a layer and some of its heads.
            at_once: heads whose maps may be in memory together, where only what they come to is wanted.
        """

        def fold_layer(layer: int, heads: list[int]) -> Array:
            if self.over_heads == "none":
                return compute(layer, heads)
            parts = (compute(layer, heads[start : start + at_once]) for start in range(0, len(heads), at_once))
            joined = _join(
                self.over_heads, (JOINS[self.over_heads].reduce(part, axis=0, keepdims=True) for part in parts)
            )
            return joined / len(heads) if self.over_heads == "mean" and not self.is_paired else joined

        layers = (fold_layer(layer, heads) for layer, heads in self.by_layer.items())
        if self.over_layers == "none":
            return np.concatenate(list(layers))
        joined = _join(self.over_layers, layers)
        if self.over_layers == "mean":
            joined /= self.num_pairs if self.is_paired else len(self.by_layer)
        return joined


def _join(word: str, parts: Iterable[Array]) -> Array:
    """Sum, largest or smallest of arrays of one shape, one after the other."""
    joined: Array | None = None
    for part in parts:
        joined = part if joined is None else JOINS[word](joined, part, out=joined)
    assert joined is not None
    return joined
