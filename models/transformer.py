"""`Transformer`: embed, blocks, logits, on packed rows.

Shape letters as in `models/attention/variant.py`, and: D width, R rows whose logits are wanted, W vocabulary or
classes, F features.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from attnserve.models.attention.layer import Attention, AttentionConfig
from attnserve.models.attention.packed import mean_steps
from attnserve.models.config import ADDED_POSITIONS, TransformerConfig
from attnserve.models.positions import AddedPositions, RotaryPositions
from attnserve.models.prediction import predict_packed
from attnserve.packing import add_leading_row

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


class MultiHeadAttention(nn.Module):
    """Projections around `Attention`; returns its values too, which the next layer's metric needs."""

    def __init__(self, config: TransformerConfig, layer: AttentionConfig) -> None:
        super().__init__()
        self.head_size = config.channels
        queries, keys = config.num_heads * config.channels, config.key_heads * config.channels
        self.query = nn.Linear(config.width, queries, bias=config.bias)
        self.key = nn.Linear(config.width, keys, bias=config.bias)
        self.value = nn.Linear(config.width, keys, bias=config.bias)
        self.attention = Attention(layer, head_size=config.channels, causal=config.causal)
        self.output = nn.Linear(queries, config.width, bias=config.bias)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        slots: Int[Tensor, "B N"],
        previous_value: Float[Tensor, "T K V"] | None,
        rotate: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T K V"]]:
        """Attended rows, and the values they were made of."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_size)) for project in (self.query, self.key, self.value)
        )
        attended = self.attention(query, key, value, slots, previous_value=previous_value, rotate=rotate)
        return self.output(attended.flatten(1)), value


class Mlp(nn.Module):
    """up, activation, down."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_size, bias=config.bias)
        self.down = nn.Linear(config.mlp_size, config.width, bias=config.bias)
        self.activate = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Row by row."""
        rows: Tensor = self.down(self.activate(self.up(x)))
        return rows


class Block(nn.Module):
    """Residual block around attention, then around the MLP: x + f(norm(x)), or norm(x + f(x)) if norm is "post"."""

    def __init__(self, config: TransformerConfig, layer: AttentionConfig) -> None:
        super().__init__()
        self.is_post = config.norm == "post"
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=config.bias)
        self.attention = MultiHeadAttention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=config.bias)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Rows of the residual stream after this block, and its attention's values."""
        if self.is_post:
            attended, value = self.attention(x, *arguments)
            x = self.attention_norm(x + attended)
            return self.mlp_norm(x + self.mlp(x)), value
        attended, value = self.attention(self.attention_norm(x), *arguments)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), value


class FeatureEmbedding(nn.Module):
    """Feature vectors to the residual stream; a leading row, if there is one, becomes a learned vector."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.num_features is not None
        self.projection = nn.Linear(config.num_features, config.width, bias=config.bias)
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02) if config.interface.leading_row else None

    def forward(self, features: Float[Tensor, "T F"], positions: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Row by row."""
        x: Tensor = self.projection(features)
        return x if self.cls is None else torch.where((positions == 0)[:, None], self.cls, x)


class Transformer(nn.Module):
    """A transformer over packed sequences, for every variant, training and export alike.

    Args:
        config: what it is made of.
        seed: of the initial weights; the global random state is left as it was.
    """

    def __init__(self, config: TransformerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, num_outputs = config.width, config.interface.num_outputs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.vocabulary_size is not None:
                self.token_embedding = nn.Embedding(config.vocabulary_size, width)
            else:
                self.feature_embedding = FeatureEmbedding(config)
            self.positions = AddedPositions(config) if config.positions in ADDED_POSITIONS else None
            self.rotary = RotaryPositions(config) if config.positions == "rotary" else None
            self.layers = nn.ModuleList(Block(config, layer) for layer in config.attention)
            # After a post-norm block the stream is normed already.
            self.final_norm = (
                nn.LayerNorm(width, eps=config.norm_epsilon, bias=config.bias)
                if config.norm == "pre"
                else nn.Identity()
            )
            if config.task == "next_token":
                self.unembedding = nn.Linear(width, num_outputs, bias=config.bias)
            else:
                self.classifier = nn.Linear(width, num_outputs, bias=config.bias)
        if config.tied_embeddings:
            # Not the same parameter twice: a state dict, and a file, would hold it twice.
            self.unembedding.register_parameter("weight", None)

    def forward(
        self,
        inputs: Int[Tensor, " T"] | Float[Tensor, "T F"],
        positions: Int[Tensor, " T"],
        slots: Int[Tensor, "B N"],
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R W"]:
        """Logits of `rows`, so unembedding never runs on all T rows; with mean pooling, of all B sequences.

        Args:
            inputs: ids or feature vectors of all sequences, one after the other.
            positions: step of each row within its sequence.
            slots: packed row of every (sequence, step), T where there is none (`attnserve.packing` makes them).
            rows: packed rows whose logits are wanted; may be empty. None with mean pooling.
        """
        if self.config.vocabulary_size is not None:
            x = self.token_embedding(inputs)
        else:
            x = self.feature_embedding(inputs, positions)
        if self.positions is not None:
            x = self.positions(x, positions)
        rotate = self.rotary.at(positions) if self.rotary is not None else None
        value = None
        for block in self.layers:
            x, value = block(x, slots, value, rotate)
        if self.config.pooling == "mean":
            logits: Tensor = self.classifier(mean_steps(self.final_norm(x), slots))
            return logits
        if rows is None:
            raise ValueError("rows: expected packed rows whose logits are wanted, got none")
        x = self.final_norm(x[rows])
        if self.config.tied_embeddings:
            return functional.linear(x, self.token_embedding.weight, self.unembedding.bias)
        logits = self.unembedding(x) if self.config.task == "next_token" else self.classifier(x)
        return logits

    def predict(self, sequences: Sequence[Sequence[Any] | NDArray[Any]]) -> list[Tensor]:
        """Logits from one packed forward pass: [n, W] of every step, or [1, C] per sequence for classify_sequence.

        Args:
            sequences: ids [n], or feature vectors [n, F], of any lengths.

        Raises:
            ValueError: no sequence, or one that is empty, too long or not of ids or features; names it.
        """
        if not len(sequences):
            raise ValueError("sequences: expected at least one, got none")
        check = self._check_ids if self.config.vocabulary_size is not None else self._check_features
        checked = [check(f"sequences[{index}]", sequence) for index, sequence in enumerate(sequences)]
        return predict_packed(self, self.config.interface, checked)

    def _check_ids(self, field: str, sequence: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        size, longest = self.config.vocabulary_size, self.config.max_length
        assert size is not None
        ids = _array_of(sequence)
        if ids is None:
            raise ValueError(f"{field}: expected a list of 1 to {longest} ids, got others")
        if ids.ndim != 1 or not 1 <= len(ids) <= longest:
            raise ValueError(f"{field}: expected a list of 1 to {longest} ids, got shape {list(ids.shape)}")
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= size:
            raise ValueError(f"{field}: expected integers from 0 to {size - 1}, got others")
        return ids.astype(np.int64)

    def _check_features(self, field: str, sequence: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        size, longest = self.config.num_features, self.config.max_length
        numbers = _array_of(sequence)
        # Neither text nor booleans nor complex numbers, all of which numpy would convert.
        if numbers is None or numbers.dtype.kind not in "iuf":
            raise ValueError(f"{field}: expected rows of {size} numbers, got others")
        if numbers.ndim != 2 or not 1 <= len(numbers) <= longest or numbers.shape[1] != size:
            shape = list(numbers.shape)
            raise ValueError(f"{field}: expected 1 to {longest} rows of {size} numbers, got shape {shape}")
        with np.errstate(over="ignore"):
            features = numbers.astype(np.float32)
        if not np.isfinite(features).all():
            raise ValueError(f"{field}: expected finite float32 numbers, got NaN or infinity")
        return add_leading_row(features) if self.config.interface.leading_row else features


def _array_of(sequence: Sequence[Any] | NDArray[Any]) -> NDArray[Any] | None:
    """The array that nested lists are; None if they are ragged."""
    try:
        return np.asarray(sequence)
    except ValueError:
        return None
