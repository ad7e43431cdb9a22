"""The values of the layer before, which elliptical attention needs and transformers hands to nobody.

Kept outside of the models, by module: gradient checkpointing runs layers again, last one first, and each must find the
values of its own neighbour, not those of whichever layer ran before.
"""

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn


@dataclass
class _Layer:
    """What is known of an attention module."""

    before: "ref[nn.Module] | None"
    """That of the layer before; None in the first."""
    value: Tensor | None = field(default=None, repr=False)


_LAYERS: "WeakKeyDictionary[nn.Module, _Layer]" = WeakKeyDictionary()
_LAST: "list[ref[nn.Module]]" = []


def previous_values(module: nn.Module, value: Tensor) -> Tensor | None:
    """Keep a layer's values, and return those of the layer before; None in the first layer of a model.

    Which layer is before is found when a module attends for the first time: the one that attended last, if both belong
    to one model, which they do if they share a config.
    """
    layer = _LAYERS.get(module)
    if layer is None:
        last = _LAST[0]() if _LAST else None
        is_first = getattr(module, "layer_idx", None) == 0
        same = last is not None and getattr(last, "config", None) is getattr(module, "config", None)
        layer = _LAYERS[module] = _Layer(before=ref(last) if last is not None and same and not is_first else None)
    layer.value = value.detach()
    _LAST[:] = [ref(module)]
    before = None if layer.before is None else layer.before()
    return None if before is None else _LAYERS[before].value
