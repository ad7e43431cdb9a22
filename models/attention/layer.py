"""`Attention`: the one module that attends, and the seam the exporter takes hold of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from attnserve.interface import check_choice
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.elliptical import SCALINGS, check_scope, elliptical_metric
from attnserve.models.attention.packed import attend, heads_per_key
from attnserve.models.attention.variant import Variant
from attnserve.records import check_types


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How one layer attends. None of this is in a state dict, and all of it shapes the answer."""

    variant: str = "dot_product"
    """A name in `VARIANTS`."""
    scale: float | None = None
    """Factor on q.k; None is 1 / sqrt(head size) and is written to files as that number."""
    epsilon: float = 0.0
    """Added to the row sum of expressive attention."""
    window: int = 0
    """Keys within this distance are visible, the query's own included; 0 is all."""
    softcap: float = 0.0
    """Scores become softcap * tanh(score / softcap); 0 is off."""
    scope: str | None = None
    """Elliptical: the steps the metric is estimated from ("sequence", "prefix", "sequence-leaky")."""
    scaling: str | None = None
    """Elliptical: "max" or "mean"; a model trained with one is wrong with the other, so it is never guessed."""

    def __post_init__(self) -> None:
        """Refuse what no variant could mean.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_types(self)
        check_choice("variant", self.variant, tuple(VARIANTS))
        elliptical = self.variant == "elliptical"
        for field in ("epsilon", "softcap"):
            value = getattr(self, field)
            if value != 0 and not is_normal_float32(value):
                raise ValueError(f"{field}: expected 0 or a float32 number > 0, got {value!r}")
        if not 0 <= self.window < 2**31:
            raise ValueError(f"window: expected an integer from 0 to {2**31 - 1}, got {self.window!r}")
        if self.scale is not None and not is_normal_float32(self.scale):
            raise ValueError(f"scale: expected a float32 number > 0, got {self.scale!r}")
        if self.epsilon and self.variant != "expressive":
            raise ValueError(f"epsilon: only expressive attention has one; expected 0, got {self.epsilon!r}")
        if elliptical and self.scaling is None:
            raise ValueError(f"scaling: elliptical attention needs one of {', '.join(SCALINGS)}, got None")
        if elliptical and self.scope is None:
            raise ValueError("scope: elliptical attention needs one of sequence, prefix, sequence-leaky, got None")
        if elliptical:
            check_choice("scaling", self.scaling, SCALINGS)
        elif self.scope is not None or self.scaling is not None:
            field = "scope" if self.scope is not None else "scaling"
            raise ValueError(f"{field}: only elliptical attention has one; expected None, got {getattr(self, field)!r}")


def is_normal_float32(value: float) -> bool:
    """Whether `value` > 0 keeps its digits in float32, which scores are computed in: neither infinite nor vanishing."""
    return 2.0**-126 <= value < 2.0**128


class Attention(nn.Module):
    """Attend within each sequence of a packed batch.

    `attend` and `measure` are plain differentiable functions held in attributes. Training sees ordinary PyTorch; the
    exporter swaps them for symbolic ONNX nodes while it traces, and puts them back (`attnserve.export.lowering`).
    """

    attend: Callable[..., Tensor]
    """(query, key, value, slots) -> [T, H, V]"""
    measure: Callable[..., Tensor] | None
    """(value, previous_value, slots) -> metric [T, K, E], for variants that have one."""

    def __init__(self, config: AttentionConfig, *, head_size: int, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.head_size = head_size
        self.scale = 1 / math.sqrt(head_size) if config.scale is None else config.scale
        self.attend = partial(
            attend,
            self.variant.weigh,
            causal=causal,
            scale=self.scale,
            epsilon=config.epsilon,
            window=config.window,
            softcap=config.softcap,
        )
        self.measure = None
        if self.variant.metric_op is not None:
            assert config.scope is not None
            assert config.scaling is not None
            check_scope(config.scope, causal=causal)
            self.measure = partial(elliptical_metric, scope=config.scope, scaling=config.scaling)

    @property
    def variant(self) -> Variant:
        """The row of `VARIANTS` this layer uses."""
        return VARIANTS[self.config.variant]

    def forward(
        self,
        query: Float[Tensor, "T H E"],
        key: Float[Tensor, "T K E"],
        value: Float[Tensor, "T K V"],
        slots: Int[Tensor, "B N"],
        *,
        previous_value: Float[Tensor, "T K V"] | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "T H V"]:
        """Attend; `previous_value` is the layer before's `value`, needed by variants with a metric.

        `rotate` applies rotary positions to query and key. The metric comes first: after the rotation, scores would
        depend on absolute positions.
        """
        if self.measure is not None:
            if previous_value is None:
                raise ValueError(f"previous_value: {self.variant.name} attention needs the layer before's values")
            metric = self.measure(value, previous_value, slots)
            query = query * metric.repeat_interleave(heads_per_key(query, key), dim=1)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        return self.attend(query, key, value, slots)
