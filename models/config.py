"""What a transformer is made of: everything that shapes its answers and is not a tensor."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from attnserve.models.attention.elliptical import check_choice, check_scope
from attnserve.models.attention.layer import AttentionConfig
from attnserve.records import check_types

FORMAT_VERSION = 1
TASKS = ("next_token",)
POSITIONS = ("orthogonal", "learned", "rotary", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
MAX_SIZE = 2**24
"""Of every dimension. Products of two stay inside int64, so what is too large is refused by its name."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A packed pre-norm transformer. Saved as `config.json`; docs/checkpoint.md gives every field and formula."""

    vocabulary_size: int
    max_length: int
    """Longest sequence, in steps."""
    width: int
    """Size of the residual stream."""
    num_heads: int
    """Heads of every layer; each has width / num_heads channels."""
    attention: tuple[AttentionConfig, ...]
    """One entry per layer, so variants may be mixed."""
    format_version: int = FORMAT_VERSION
    task: str = "next_token"
    causal: bool = True
    positions: str = "orthogonal"
    rotary_base: float = 10_000.0
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    bias: bool = False
    """Biases in every linear layer and norm."""
    norm_epsilon: float = 1e-5
    labels: tuple[str, ...] | None = None
    """A name per token id, accepted in requests and returned in answers."""

    def __post_init__(self) -> None:
        """Resolve default scales and refuse combinations that make no sense.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_types(self)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version: this release reads {FORMAT_VERSION}, got {self.format_version}")
        check_choice("task", self.task, TASKS)
        check_choice("positions", self.positions, POSITIONS)
        check_choice("activation", self.activation, ACTIVATIONS)
        for field in ("vocabulary_size", "max_length", "width", "num_heads"):
            if not 1 <= getattr(self, field) <= MAX_SIZE:
                raise ValueError(f"{field}: expected an integer from 1 to {MAX_SIZE}, got {getattr(self, field)}")
        for field in ("rotary_base", "mlp_ratio", "norm_epsilon"):
            if not math.isfinite(getattr(self, field)) or getattr(self, field) <= 0:
                raise ValueError(f"{field}: expected a finite number > 0, got {getattr(self, field)}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of width {self.width}, got {self.num_heads}")
        if self.mlp_ratio * self.width % 1 or self.mlp_ratio * self.width > MAX_SIZE:
            raise ValueError(
                f"mlp_ratio: times width {self.width} must be an integer from 1 to {MAX_SIZE}, got {self.mlp_ratio}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"positions: rotary needs an even head size, got width / num_heads = {self.head_size}")
        if self.labels is not None and len(self.labels) != self.vocabulary_size:
            raise ValueError(f"labels: expected {self.vocabulary_size} (vocabulary_size), got {len(self.labels)}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: expected distinct names, got duplicates")
        for index, label in enumerate(self.labels or ()):
            # JSON can spell half of a surrogate pair; no answer that names it could be encoded.
            if label.encode(errors="replace").decode() != label:
                raise ValueError(f"labels[{index}]: expected text that UTF-8 can encode, got {label!a}")
        self._check_layers()
        resolved = (
            layer if layer.scale is not None else dataclasses.replace(layer, scale=1 / math.sqrt(self.head_size))
            for layer in self.attention
        )
        object.__setattr__(self, "attention", tuple(resolved))

    def _check_layers(self) -> None:
        if not self.attention:
            raise ValueError("attention: expected one entry per layer, got none")
        for index, layer in enumerate(self.attention):
            if layer.variant != "elliptical":
                continue
            if index == 0:
                raise ValueError(
                    "attention[0].variant: elliptical attention needs the values of a layer before it; "
                    "expected dot_product or expressive, got elliptical"
                )
            assert layer.scope is not None
            try:
                check_scope(layer.scope, causal=self.causal)
            except ValueError as error:
                raise ValueError(f"attention[{index}].{error}") from None

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.attention)

    @property
    def head_size(self) -> int:
        """Channels per head, E = V."""
        return self.width // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden units of each block's MLP."""
        return round(self.mlp_ratio * self.width)


def layers_of(variant: str, num_layers: int, **options: Any) -> tuple[AttentionConfig, ...]:
    """`num_layers` entries of one variant with the same options of `AttentionConfig`.

    Elliptical begins with the dot-product layer it needs, with all options but those of the metric.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers: expected an integer >= 1, got {num_layers}")
    layer = AttentionConfig(variant=variant, **options)
    if variant != "elliptical":
        return (layer,) * num_layers
    first = dataclasses.replace(layer, variant="dot_product", scope=None, scaling=None)
    return (first, *(layer,) * (num_layers - 1))
