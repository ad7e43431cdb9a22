"""Predicting: sequences through one packed forward pass of any module that takes packed rows.

The calling convention, which `Transformer` follows and `attnserve.export.export_module` asks of other people's modules:

    module(inputs, positions, slots, rows) -> logits [R, W]
    module(inputs, positions, slots)       -> logits [B, C], with mean pooling

`inputs` are ids [T] or feature vectors [T, F]; `attnserve.packing` makes all of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnserve.interface import Interface
from attnserve.packing import Packed, pack


def predict_packed(
    module: nn.Module, interface: Interface, sequences: Sequence[NDArray[np.int64] | NDArray[np.float32]]
) -> list[Tensor]:
    """Logits of every step, [n, W] per sequence; of classify_sequence [1, C].

    Args:
        module: follows the convention above.
        interface: what it reads and answers.
        sequences: [n] ids or [n, F] features each, leading rows included.
    """
    packed = pack(sequences)
    if interface.task == "classify_sequence":
        steps = [interface.answer_step(length) for length in packed.lengths]
        rows = torch.tensor([start + step for start, step in zip(packed.starts, steps, strict=True)])
        sizes = [1] * len(sequences)
    else:
        rows, sizes = torch.arange(len(packed.inputs)), packed.lengths
    logits = module(*tensors_of(module, interface, packed, rows))
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected the logits, one tensor, got {type(logits).__name__}")
    return list(torch.split(logits, sizes))


def tensors_of(module: nn.Module, interface: Interface, packed: Packed, rows: Tensor) -> tuple[Tensor, ...]:
    """The arguments of `module` for a batch, where it stands and, for features, in its precision."""
    parameter = next(module.parameters())
    inputs = torch.from_numpy(packed.inputs)
    arguments = (
        inputs.to(parameter.dtype) if inputs.is_floating_point() else inputs,
        torch.from_numpy(packed.positions),
        torch.from_numpy(packed.slots),
        rows,
    )
    device = parameter.device
    return tuple(argument.to(device) for argument in (arguments if interface.has_rows else arguments[:3]))
