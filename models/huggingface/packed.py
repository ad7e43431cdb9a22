"""A Hugging Face model as a module for packed rows, with `attnserve.models.Attention` in every layer.

Its own code runs, from embeddings to logits; of images, from the rows that `images` makes of patches. The model's body
is called with all T rows as one sequence: nothing in it looks across rows but attention, which is ours. What stands
around the body, its head, is called with as many sequences of one step as rows are asked for, so that a head that takes
the first step, the last one or each of them finds it; with mean pooling, with the padded sequences themselves, or, of
an image, with the rows before its patches and the mean of these. Two hooks stand between: a door, where the body gets
the packed rows instead of what the head was given, and an exit, where the head gets the rows it was asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from attnserve.models.attention.layer import Attention
from attnserve.models.attention.packed import existing_steps, gather_steps
from attnserve.models.huggingface.bias import RelativeBias, take_biases
from attnserve.models.huggingface.images import PIXELS, PatchRows, find_patches
from attnserve.models.huggingface.inspection import Inspection, max_length_of
from attnserve.models.huggingface.interface import NAMES, Attended, register, taken
from attnserve.models.huggingface.settings import Settings
from attnserve.models.huggingface.wide import widened

ATTENTION = "attnserve"
"""Under this name every attention module gets an `Attention`."""
BIAS = "attnserve_bias"
"""Under this one those with a bias get a `RelativeBias`."""


class PackedModel(nn.Module):
    """A model that answers for rows of a packed batch; follows `attnserve.models.prediction`.

    Args:
        model: in eval mode; becomes part of this and is changed.
        report: what `inspect` has seen of it, and has nothing against.
        settings: how it attends.
    """

    def __init__(self, model: PreTrainedModel, report: Inspection, settings: Settings) -> None:
        super().__init__()
        self.model = model
        self.offset = 0
        """Of the position that the model gives the first step."""
        # By name, which a copy of this has too.
        self.body = report.body
        register()
        model.set_attn_implementation(NAMES[settings.variant])
        for index, seen in enumerate(report.layers):
            # The first layer of an elliptical model has no values to compare with.
            by = Settings() if settings.variant == "elliptical" and index == 0 else settings
            config = by.layer(scale=seen.scale, window=seen.window, softcap=seen.softcap)
            attention = Attention(config, head_size=seen.head_size, causal=seen.causal)
            seen.module.add_module(ATTENTION, attention)
        biased = [seen.module for seen in report.layers if seen.has_bias]
        for part, bias in zip(biased, take_biases(biased, max_length_of(model.config)), strict=True):
            part.add_module(BIAS, bias)
        _replace_convolutions(model)
        patches = find_patches(model)
        self.embeddings = "" if patches is None else patches.embeddings
        if patches is not None:
            model.set_submodule(patches.embeddings, PatchRows(patches))
        text = model.config.get_text_config()
        if getattr(text, "pad_token_id", None) is None:
            # Without one, heads that look for the last step take one sequence at a time. Here each has a single step.
            text.pad_token_id = 0

    def forward(
        self,
        inputs: Int[Tensor, " T"] | Float[Tensor, "T F"],
        positions: Int[Tensor, " T"],
        slots: Int[Tensor, "B N"],
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R W"]:
        """Logits of `rows`, or of every sequence where a mean over its steps is taken."""
        call = _Call(inputs, positions + self.offset, slots, rows)
        in_earnest = widened() if self.model.dtype == torch.float64 else nullcontext()
        with taken(call.attend, _no_mask), self._hooked(call), in_earnest:
            if self.embeddings:
                # What the head is given is replaced at the door.
                logits = self.model(**{PIXELS: inputs}).logits
            elif rows is None:
                mask = existing_steps(slots, inputs)
                padded = torch.cat([inputs, inputs.new_zeros(1)])[slots]
                logits = self.model(input_ids=padded, attention_mask=mask).logits
            else:
                with _single():
                    logits = self.model(input_ids=inputs[rows][:, None]).logits
        answers: Tensor = logits.flatten(0, -2)
        return answers

    @contextmanager
    def _hooked(self, call: "_Call") -> Iterator[None]:
        body = self.model.get_submodule(self.body)
        # A pooler takes the first step inside of the body already.
        out = getattr(body, "encoder", body) if getattr(body, "pooler", None) is not None else body
        handles = [
            body.register_forward_pre_hook(call.enter, with_kwargs=True),
            out.register_forward_hook(call.leave),
        ]
        if self.embeddings:
            rows = self.model.get_submodule(self.embeddings)
            handles.append(rows.register_forward_pre_hook(call.embed, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _single(TorchFunctionMode):
    """Whoever looks for the last of a single step has it without a search, for which GPUs have no kernel."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, but for an `argmax` along one element."""
        if func is torch.Tensor.argmax and args[1:] == (-1,) and args[0].shape[-1] == 1:
            return torch.zeros_like(args[0][..., 0], dtype=torch.long)
        return func(*args, **(kwargs or {}))


class _Call:
    """One forward pass: what goes in at the door, and what attention needs besides what it is called with."""

    def __init__(self, inputs: Tensor, positions: Tensor, slots: Tensor, rows: Tensor | None) -> None:
        self.inputs, self.positions, self.slots, self.rows = inputs, positions, slots, rows
        self.value: Tensor | None = None
        """Of the layer before."""
        self.num_leading = 0
        """Rows before the patches of an image."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Attended:
        """Attend over packed rows, which come as one sequence: [1, H, T, E]."""
        query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))
        attention = module.get_submodule(ATTENTION)
        assert isinstance(attention, Attention)
        bias = getattr(module, BIAS, None)
        if isinstance(bias, RelativeBias):
            query, key = bias.lengthen(query, key, self.positions, attention.scale)
        attended = attention(query, key, value, self.slots, previous_value=self.value)
        self.value = value
        return attended[None], None

    def enter(self, body: nn.Module, _: Any, __: Any) -> tuple[tuple[()], dict[str, Any]]:
        """Call the body with packed rows, whatever its head has called it with."""
        if self.inputs.ndim > 1:
            return (), {PIXELS: self.inputs}
        packed = {"input_ids": self.inputs[None], "position_ids": self.positions[None], "use_cache": False}
        if getattr(body.config, "type_vocab_size", 0):
            # As these models fill it in by themselves, but by an op that onnx's evaluator has a bug in.
            packed["token_type_ids"] = torch.zeros_like(self.inputs)[None]
        known = signature(body.forward).parameters
        return (), {name: value for name, value in packed.items() if name in known}

    def embed(self, rows: nn.Module, _: Any, __: Any) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Make rows of packed patches, which need their positions for it."""
        assert isinstance(rows, PatchRows)
        self.num_leading = rows.num_leading
        return (self.inputs, self.positions), {}

    def leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Give the head what it was promised: the rows asked for, or the steps of every sequence."""
        hidden = output[0][0]
        chosen = self._steps(hidden) if self.rows is None else hidden[self.rows][:, None]
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        output["last_hidden_state"] = chosen
        return output

    def _steps(self, hidden: Tensor) -> Tensor:
        """Steps of every sequence [B, N, D]; of an image its leading rows, and the mean of its patches for the rest."""
        steps = gather_steps(hidden[:, None], self.slots)[:, 0]
        if self.inputs.ndim == 1:
            return steps
        num_patches = existing_steps(self.slots, hidden).sum(1) - self.num_leading
        mean = steps[:, self.num_leading :].sum(1) / num_patches[:, None]
        return torch.cat([steps[:, : self.num_leading], mean[:, None].to(steps.dtype)], dim=1)


def _no_mask(*_: Any, **__: Any) -> None:
    """Which keys a row may see, its attention knows from `slots`."""


def _replace_convolutions(model: nn.Module) -> None:
    """GPT-2's `Conv1D` is a `Linear` with its weight transposed, which nothing here would know as one."""
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, Conv1D)]
    for name, part in found:
        parent, _, child = name.rpartition(".")
        num_inputs, num_outputs = part.weight.shape
        linear = nn.Linear(num_inputs, num_outputs, device="meta", dtype=part.weight.dtype)
        linear.weight = nn.Parameter(part.weight.detach().T.contiguous(), requires_grad=False)
        linear.bias = part.bias
        setattr(model.get_submodule(parent), child, linear)
