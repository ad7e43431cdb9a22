"""What a transformer is made of: everything that shapes its answers and is not a tensor."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from attnserve.interface import MAX_SIZE, Interface, check_choice
from attnserve.models.attention.elliptical import check_scope
from attnserve.models.attention.layer import AttentionConfig
from attnserve.records import check_types

FORMAT_VERSION = 1
POSITIONS = ("orthogonal", "learned", "sinusoidal", "rotary", "none")
ADDED_POSITIONS = ("orthogonal", "learned", "sinusoidal")
NORMS = ("pre", "post")
MAX_LAYERS = 1024
"""Making a layer takes time and memory before a number of it is read, and a config may ask for millions."""
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A packed transformer. Saved as `config.json`; docs/checkpoint.md gives every field and formula."""

    vocabulary_size: int | None = None
    """Of a model that reads ids."""
    num_features: int | None = None
    """Of a model that reads feature vectors: numbers per step."""
    max_length: int
    """Longest sequence, in steps as they are sent."""
    width: int
    """Size of the residual stream."""
    num_heads: int
    """Query heads of every layer."""
    num_key_heads: int | None = None
    """Key and value heads of every layer, each read by num_heads / num_key_heads query heads; None is num_heads."""
    head_size: int | None = None
    """Channels of a head, for queries, keys and values alike; None is width / num_heads."""
    attention: tuple[AttentionConfig, ...]
    """One entry per layer, so variants may be mixed."""
    format_version: int = FORMAT_VERSION
    task: str = "next_token"
    num_classes: int | None = None
    """Of tasks classify_token and classify_sequence."""
    pooling: str | None = None
    """Of task classify_sequence: "first", "last" or "mean"."""
    causal: bool = True
    positions: str = "orthogonal"
    rotary_base: float = 10_000.0
    norm: str = "pre"
    """"pre": x + f(norm(x)), and a norm before the logits. "post": norm(x + f(x))."""
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    bias: bool = False
    """Biases in every linear layer and norm."""
    tied_embeddings: bool = False
    """The token embedding is the unembedding too."""
    norm_epsilon: float = 1e-5
    labels: tuple[str, ...] | None = None
    """A name per class, returned in answers; for next_token a name per token id, accepted in requests too."""

    def __post_init__(self) -> None:
        """Resolve defaults that depend on other fields and refuse combinations that make no sense.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_types(self)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version: this release reads {FORMAT_VERSION}, got {self.format_version}")
        check_choice("positions", self.positions, POSITIONS)
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        # Checks task, input, classes, pooling and labels.
        self.interface  # noqa: B018
        for field in ("width", "num_heads", "num_key_heads", "head_size"):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{field}: expected an integer from 1 to {MAX_SIZE}, got {value}")
        for field in ("rotary_base", "mlp_ratio", "norm_epsilon"):
            if not math.isfinite(getattr(self, field)) or getattr(self, field) <= 0:
                raise ValueError(f"{field}: expected a finite number > 0, got {getattr(self, field)}")
        self._resolve_heads()
        if self.mlp_ratio * self.width % 1 or self.mlp_ratio * self.width > MAX_SIZE:
            raise ValueError(
                f"mlp_ratio: times width {self.width} must be an integer from 1 to {MAX_SIZE}, got {self.mlp_ratio}"
            )
        if self.positions == "rotary" and self.channels % 2:
            raise ValueError(f"positions: rotary needs an even head size, got {self.channels}")
        if self.pooling == "first" and self.causal:
            raise ValueError("pooling: in a causal model the first step sees nothing else; expected last or mean")
        if self.tied_embeddings and self.task != "next_token":
            raise ValueError(f"tied_embeddings: {self.task} has no unembedding; expected false, got true")
        self._check_layers()
        resolved = (
            layer if layer.scale is not None else dataclasses.replace(layer, scale=1 / math.sqrt(self.channels))
            for layer in self.attention
        )
        object.__setattr__(self, "attention", tuple(resolved))

    def _resolve_heads(self) -> None:
        if self.head_size is None:
            if self.width % self.num_heads:
                raise ValueError(
                    f"num_heads: expected a divisor of width {self.width} (or a head_size), got {self.num_heads}"
                )
            object.__setattr__(self, "head_size", self.width // self.num_heads)
        if self.channels * self.num_heads > MAX_SIZE:
            raise ValueError(
                f"head_size: times num_heads {self.num_heads} may be at most {MAX_SIZE}, got {self.channels}"
            )
        if self.num_key_heads is None:
            object.__setattr__(self, "num_key_heads", self.num_heads)
        if self.num_heads % self.key_heads:
            raise ValueError(f"num_key_heads: expected a divisor of num_heads {self.num_heads}, got {self.key_heads}")

    def _check_layers(self) -> None:
        if not 1 <= len(self.attention) <= MAX_LAYERS:
            raise ValueError(f"attention: expected 1 to {MAX_LAYERS} entries, one per layer, got {len(self.attention)}")
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

    @cached_property
    def interface(self) -> Interface:
        """What the model reads and what it answers."""
        return Interface(
            task=self.task,
            max_length=self.max_length,
            vocabulary_size=self.vocabulary_size,
            num_features=self.num_features,
            num_classes=self.num_classes,
            pooling=self.pooling,
            leading_row=self.num_features is not None and self.pooling == "first",
            labels=self.labels,
        )

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.attention)

    @property
    def num_positions(self) -> int:
        """Rows of the longest sequence, the leading one included."""
        return self.max_length + self.interface.leading_row

    @property
    def channels(self) -> int:
        """`head_size` when it is resolved: E = V."""
        assert self.head_size is not None
        return self.head_size

    @property
    def key_heads(self) -> int:
        """`num_key_heads` when it is resolved."""
        assert self.num_key_heads is not None
        return self.num_key_heads

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
