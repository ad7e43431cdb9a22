"""The subject of an export: a module, what it reads and answers, and where its layers keep what the captures need.

Found by running the module once and watching, so it works for any module whose attention is
`attnserve.models.attention.Attention`, whatever stands around it.
"""

import dataclasses
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnserve.interface import Interface
from attnserve.models.attention.layer import Attention
from attnserve.models.attention.recording import attention_layers
from attnserve.models.prediction import predict_packed, tensors_of
from attnserve.packing import pack

# int8 is of weights, which are rounded in the graph; what computes is float32.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.float32}


class ModuleError(ValueError):
    """A module cannot be exported as it is; the message names the layer or argument."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the subject: its attention, and the modules around it."""

    attention: Attention
    projection: nn.Linear
    """[D, H * V]: how the heads' outputs enter the residual stream."""
    block: nn.Module
    """Returns the residual stream [T, D] after the layer, alone or first in a tuple."""
    num_heads: int
    num_key_heads: int
    head_size: int
    value_size: int

    @property
    def is_causal(self) -> bool:
        """Whether no step sees a later one, through the metric neither."""
        return self.attention.causal and self.attention.config.scope != "sequence-leaky"

    @property
    def head_projections(self) -> NDArray[np.float64]:
        """[D, H, V] of the projection's weight."""
        weight = self.projection.weight.detach().cpu().double().numpy()
        return weight.reshape(len(weight), self.num_heads, self.value_size)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is exported."""

    module: nn.Module
    """In eval mode, on the CPU, in `precision`; called as `attnserve.models.prediction` says."""
    interface: Interface
    layers: tuple[Layer, ...]
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations in PyTorch."""
        return DTYPES[self.precision]


@dataclass(frozen=True, kw_only=True)
class _Called:
    """A `Linear` that ran."""

    layer: nn.Linear
    num_attended: int
    """Layers that had attended before."""


@dataclass
class _Watched:
    """What one forward pass did, in order."""

    calls: list[Attention] = field(default_factory=list)
    shapes: list[tuple[torch.Size, torch.Size, torch.Size]] = field(default_factory=list)
    attended: Tensor | None = None
    linears: list[_Called] = field(default_factory=list)
    projections: dict[Attention, nn.Linear] = field(default_factory=dict)
    blocks: list[nn.Module] = field(default_factory=list)
    rows: dict[nn.Module, Any] = field(default_factory=dict)


def find_layers(
    module: nn.Module,
    interface: Interface,
    example: NDArray[Any],
    *,
    blocks: Sequence[nn.Module] | None = None,
    projections: Sequence[nn.Linear] | None = None,
) -> tuple[Layer, ...]:
    """Run `module` on one sequence and find every layer's attention, projection and block.

    Args:
        module: in eval mode.
        interface: what it reads and answers.
        example: [n] ids or [n, F] features, leading row included.
        blocks: one per layer, where the elements of the module's `ModuleList` are not they.
        projections: one per layer, where the heads' outputs do not go straight into a `Linear`.

    Raises:
        ModuleError: it does not run as asked, its attention is none of ours, or something cannot be found.
    """
    registered = attention_layers(module)
    if not registered:
        raise ModuleError("module: expected attention by attnserve.models.Attention, found none")
    chosen = [_block_of(module, layer) for layer in registered] if blocks is None else list(blocks)
    for name, given in (("blocks", chosen), ("projections", projections or registered)):
        if len(given) != len(registered):
            raise ModuleError(f"{name}: expected {len(registered)}, one per attention layer, got {len(given)}")
    watched = _watch(module, interface, example, chosen)
    _check_rows(module, interface, example)
    _check_last_position(module, interface, example)
    if watched.calls != registered:
        order = [registered.index(layer) for layer in watched.calls]
        raise ModuleError(
            f"module: expected each of its {len(registered)} attention layers to run once, in the order registered; "
            f"got runs of layers {order}"
        )
    found = []
    for index, (layer, block) in enumerate(zip(registered, chosen, strict=True)):
        projection = watched.projections.get(layer) if projections is None else projections[index]
        if projection is None:
            raise ModuleError(
                f"projections: layer {index}: the heads' outputs do not go straight into a Linear; name one per layer"
            )
        query, key, value = watched.shapes[index]
        if not isinstance(projection, nn.Linear) or projection.in_features != query[1] * value[2]:
            raise ModuleError(
                f"projections: layer {index}: expected a Linear that reads the heads' {query[1] * value[2]} numbers, "
                f"got {projection}"
            )
        output = watched.rows.get(block)
        expected = [len(example), projection.out_features]
        if not isinstance(output, Tensor) or list(output.shape) != expected:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModuleError(
                f"blocks: layer {index}: expected a module that returns the residual stream {expected}, got {got}"
            )
        sizes = {"num_heads": query[1], "num_key_heads": key[1], "head_size": query[2], "value_size": value[2]}
        found.append(Layer(attention=layer, projection=projection, block=block, **sizes))
        named = [call for call in watched.linears if call.layer is projection]
        if projections is not None and [call.num_attended for call in named] != [index + 1]:
            raise ModuleError(
                f"projections: layer {index}: expected a Linear that runs once, between this layer's attention and the "
                "next one's, got another"
            )
    # Their outputs are told apart by the order in which they come.
    if watched.blocks != chosen or len(set(chosen)) < len(chosen):
        raise ModuleError("blocks: expected a module per layer that runs once, in the order of the layers, got others")
    if len({layer.num_heads for layer in found}) > 1:
        counts = [layer.num_heads for layer in found]
        raise ModuleError(f"module: expected as many heads in every layer, got {counts}")
    return tuple(found)


def _block_of(module: nn.Module, layer: Attention) -> nn.Module:
    """The element of a `ModuleList` or `Sequential` that holds the layer, else the largest part that holds no other."""
    (name,) = (name for name, part in module.named_modules() if part is layer)
    names = name.split(".")
    ancestors = [module.get_submodule(".".join(names[:end])) for end in range(len(names))]
    for parent, child in zip(ancestors, [*ancestors[1:], layer], strict=True):
        if isinstance(parent, nn.ModuleList | nn.Sequential) and len(attention_layers(child)) == 1:
            return child
    return next((part for part in ancestors[1:] if len(attention_layers(part)) == 1), layer)


def _watch(module: nn.Module, interface: Interface, example: NDArray[Any], blocks: Sequence[nn.Module]) -> _Watched:
    watched = _Watched()

    def saw_attention(layer: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
        assert isinstance(layer, Attention)
        watched.calls.append(layer)
        given = inspect.signature(layer.forward).bind(*arguments, **named).arguments
        watched.shapes.append((given["query"].shape, given["key"].shape, given["value"].shape))
        watched.attended = output

    def saw_linear(layer: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor], _: Any) -> None:
        assert isinstance(layer, nn.Linear)
        watched.linears.append(_Called(layer=layer, num_attended=len(watched.calls)))
        attended, watched.attended = watched.attended, None
        (rows,) = [*arguments, *named.values()]
        # The very numbers: a norm or a gate in between would make it another projection.
        if attended is not None and _is_same(rows.flatten(0, -2), attended.flatten(1)):
            watched.projections[watched.calls[-1]] = layer

    def saw_block(block: nn.Module, _: Any, output: Any) -> None:
        watched.blocks.append(block)
        rows = output[0] if isinstance(output, tuple) else output
        # Others' modules have the batch as one sequence [1, T, D].
        watched.rows[block] = rows[0] if isinstance(rows, Tensor) and rows.ndim == 3 and len(rows) == 1 else rows

    handles = [block.register_forward_hook(saw_block) for block in blocks]
    for part in module.modules():
        if isinstance(part, Attention):
            handles.append(part.register_forward_hook(saw_attention, with_kwargs=True))
        elif isinstance(part, nn.Linear):
            handles.append(part.register_forward_hook(saw_linear, with_kwargs=True))
    try:
        with _calling(interface, "the example"):
            (logits,) = predict_packed(module, interface, [example])
    finally:
        for handle in handles:
            handle.remove()
    if logits.shape[1:] != (interface.num_outputs,):
        raise ModuleError(
            f"module: expected {interface.num_outputs} logits per answer, got shape {list(logits.shape)} on the example"
        )
    return watched


def _check_rows(module: nn.Module, interface: Interface, example: NDArray[Any]) -> None:
    """Ask two sequences for one row: golden asks for every row, which a module that overlooks `rows` answers too.

    And for two rows in either order: golden asks in theirs, which a module that sorts them answers too.
    """
    shorter = example[: max(1 + interface.leading_row, len(example) - 1)]
    packed = pack([example, shorter])
    rows = torch.tensor([packed.starts[1] + interface.answer_step(len(shorter))])
    with _calling(interface, "two of the example"):
        logits = module(*tensors_of(module, interface, packed, rows))
    if not interface.has_rows:
        if len(logits) != 2:
            raise ModuleError(f"module: expected the logits of two sequences, got shape {list(logits.shape)}")
        return
    if len(logits) != 1:
        raise ModuleError(f"module: expected the logits of one row when rows is [row], got shape {list(logits.shape)}")
    both = torch.tensor([len(example) - 1, packed.starts[1]])
    with _calling(interface, "two of the example"):
        forwards, backwards = (module(*tensors_of(module, interface, packed, order)) for order in (both, both.flip(0)))
    # Not number for number: where a row stands may change how its product is added up.
    bound = 1e-2 * float(forwards.abs().max())
    if math.isfinite(bound) and float((backwards - forwards.flip(0)).abs().max()) > bound:
        raise ModuleError("module: expected logits in the order of rows, got them in another")


def _check_last_position(module: nn.Module, interface: Interface, example: NDArray[Any]) -> None:
    """Put a row where the longest sequence ends: a table of positions may be too short, which service would find."""
    packed = pack([example[-1:]])
    last = np.array([interface.max_length - 1 + interface.leading_row])
    arguments = tensors_of(module, interface, dataclasses.replace(packed, positions=last), torch.tensor([0]))
    try:
        with torch.no_grad():
            module(*arguments)
    except Exception as error:
        raise ModuleError(
            f"max_length: expected steps that the module has positions for, but at step {last[0]} it raised "
            f"{type(error).__name__}: {error}"
        ) from error


@contextmanager
def _calling(interface: Interface, batch: str) -> Iterator[None]:
    """Run somebody else's code, which may raise anything."""
    try:
        with torch.no_grad():
            yield
    except Exception as error:
        raise ModuleError(
            f"module: expected to be called as (inputs, positions, slots{', rows' if interface.has_rows else ''}); "
            f"on {batch} it raised {type(error).__name__}: {error}"
        ) from error


def _is_same(found: Tensor, expected: Tensor) -> bool:
    """Whether all numbers are equal, as the type that was found has them.

    A module in half precision may attend in float32. NaN, which half precision may overflow to, is equal to itself.
    """
    expected = expected.to(found.dtype)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)
