"""Float64 in earnest: many models turn norms, rotations and softmax to float32, whatever their own type is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class widened(TorchFunctionMode):
    """Whoever asks torch for float32 in here gets float64: what a model answers then has no rounding of float32 in it.

    Without it a truth in float64 would be one in float32 wherever a norm says `x.to(torch.float32)`, and its errors,
    which change with what is rounded together, would pass for those of whoever is compared with it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with float64 in the place of float32."""
        func = torch.Tensor.double if func is torch.Tensor.float else func
        named = {name: _widen(value) for name, value in (kwargs or {}).items()}
        return func(*(_widen(value) for value in args), **named)


def _widen(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
