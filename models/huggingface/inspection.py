"""Inspecting a Hugging Face model: a dry run, in which every call of an attention function is looked at.

Most models attend through transformers' AttentionInterface, some past it without a word, and some bring what no packed
batch can have. Which is which, the run shows: no list of model names is kept here, but for what no run can show.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import getmodule, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnserve.models.attention import VARIANTS
from attnserve.models.huggingface.bias import depends_on_distance, makes_bias
from attnserve.models.huggingface.images import PIXELS, find_patches, image_shape_of
from attnserve.models.huggingface.interface import NAMES, Attended, attend_padded, plain_mask, register, taken
from attnserve.models.huggingface.masks import Mask, read_mask
from attnserve.models.huggingface.settings import Settings, read_settings
from attnserve.models.huggingface.shared import shares_layers

# Of the dry run. Masks are compared beyond it too, up to the longest sequence, where windows end.
NUM_STEPS = 12
MAX_HORIZON = 1 << 17
BATCH_ROTARY = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies depend on the longest sequence of a batch."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One layer's attention, as it was called."""

    module: nn.Module = field(repr=False)
    num_heads: int
    num_key_heads: int
    head_size: int
    value_size: int
    scale: float
    causal: bool
    window: int
    softcap: float
    has_bias: bool
    """Whether a number by distance is added to its scores (`attnserve.models.huggingface.bias`)."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model's attention is like, and what speaks against serving it."""

    variant: str
    body: str
    """Name of the part that the model's head calls with what it reads: all but the head."""
    layers: tuple[Seen, ...]
    refusals: tuple[str, ...]
    """A sentence each, which names the layer and the reason; empty if the model can be exported."""

    @property
    def causal(self) -> bool:
        """Whether no step sees a later one."""
        return all(layer.causal for layer in self.layers)


class _Refused(ValueError):
    """The reason, for one layer or the model."""


def inspect(model: PreTrainedModel, settings: Settings | None = None) -> Inspection:
    """Run a model once, on a short sequence or an image, and say what its layers do.

    Args:
        model: runs in eval mode, attending through our functions, and is left as it was.
        settings: how it is to attend, if not as its config says.
    """
    settings = settings or read_settings(model.config) or Settings()
    watch = _Watch(horizon=min(MAX_HORIZON, max_length_of(model.config)))
    refusals = list(_refusals_by_config(model, settings))
    # What follows would only say in other words what has been said.
    if not refusals:
        refusals += _run(model, watch, NAMES[settings.variant])
    if not refusals:
        refusals += _refusals_by_calls(model, watch, settings)
    body = next((name for name, part in model.named_modules() if part is watch.body), "")
    return Inspection(variant=settings.variant, body=body, layers=tuple(watch.calls), refusals=tuple(refusals))


def max_length_of(config: Any) -> int:
    """Steps that a model has positions for, offsets included; 512 where its config does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else 512


def _refusals_by_config(model: PreTrainedModel, settings: Settings) -> Iterator[str]:
    config, kind = model.config.get_text_config(), type(model).__name__
    if model.main_input_name not in ("input_ids", PIXELS):
        yield f"{kind}: reads {model.main_input_name}: expected a model that reads input_ids or {PIXELS}"
    if model.config.is_encoder_decoder:
        yield f"{kind}: an encoder with a decoder: cross-attention reads keys of another sequence"
    for rope in sorted({str(rope) for rope in _rotary_kinds(config)} & set(BATCH_ROTARY)):
        yield (
            f"{kind}: rotary positions of type {rope!r}: frequencies depend on the longest sequence of a batch, so an "
            "answer would depend on its batch-mates"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        yield f"{kind}: quantised weights: expected floating-point ones"
    is_rotary = any(name.rpartition(".")[2] == "rotary_emb" for name, _ in model.named_modules())
    if settings.variant == "elliptical" and is_rotary:
        yield (
            f"{kind}: elliptical attention with rotary positions: the metric has to come before the rotation, which "
            "transformers has done by then"
        )


def _rotary_kinds(config: Any) -> Iterator[Any]:
    waiting = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found.get("rope_type", found.get("type"))
            waiting += found.values()


def _run(model: PreTrainedModel, watch: "_Watch", name: str) -> Iterator[str]:
    register()
    before, was_training = model.config._attn_implementation, model.training
    try:
        model.eval().set_attn_implementation(name)
        with torch.no_grad(), taken(watch.attend, watch.mask), _entered(model, model.main_input_name, watch.enter):
            model(**_sample(model, min(NUM_STEPS, watch.horizon)))
    except _Refused as refused:
        yield f"{type(model).__name__}: {refused}"
    except Exception as error:
        yield f"{type(model).__name__}: cannot be run on {noun_of(model)}: {type(error).__name__}: {error}"
    finally:
        # Some models take no name but their own back; what they attend by they have not changed then.
        model.config._attn_implementation = before
        model.train(was_training)


@contextmanager
def _entered(model: nn.Module, reads: str, enter: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Tell of every part that reads what the model reads when it begins."""
    parts = [part for part in model.modules() if part is not model and reads in signature(part.forward).parameters]
    handles = [part.register_forward_pre_hook(enter) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refusals_by_calls(model: PreTrainedModel, watch: "_Watch", settings: Settings) -> Iterator[str]:
    kind, calls = type(model).__name__, watch.calls
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", len(calls))
    num_modules = len({id(call.module) for call in calls})
    of_its_own = _attention_classes(model)
    if not calls and of_its_own is not None:
        yield f"{kind}: attends by classes of its own ({of_its_own}), which no other attention can join"
    elif not calls:
        yield f"{kind}: does not attend through transformers' AttentionInterface: {num_layers} layers, 0 calls"
    elif watch.body is None:
        yield f"{kind}: expected a head that calls a body with {noun_of(model)}, got a model in one piece"
    elif len(calls) != num_layers:
        yield f"{kind}: expected each of {num_layers} layers to attend once, got {len(calls)} calls"
    elif num_modules != num_layers and not shares_layers(model):
        yield f"{kind}: expected an attention module per layer, got one that several layers share"
    elif model.main_input_name == PIXELS and find_patches(model) is None:
        yield f"{kind}: expected `embeddings` that make steps of an image by one convolution of patches, got others"
    elif settings.variant == "elliptical" and num_modules != num_layers:
        yield f"{kind}: elliptical attention compares layers, and these are one module, run again"
    elif settings.variant != "dot_product" and any(call.has_bias for call in calls):
        yield f"{kind}: scores with a bias by distance, which {settings.variant} attention does not add"
    elif settings.variant == "elliptical":
        for index, call in enumerate(calls):
            if call.head_size != call.value_size:
                sizes = f"queries of {call.head_size} and values of {call.value_size} numbers"
                yield f"{kind}: layer {index}: elliptical attention is not defined for {sizes}"


def _attention_classes(model: nn.Module) -> str | None:
    """The table of classes that a model of an older fashion chooses its attention from; None if there is none."""
    tables = vars(getmodule(type(model)))
    return next((f"{name}: {', '.join(tables[name])}" for name in tables if name.endswith("_ATTENTION_CLASSES")), None)


def noun_of(model: PreTrainedModel) -> str:
    """What a model reads, in words."""
    return "an image" if model.main_input_name == PIXELS else "ids"


def _sample(model: PreTrainedModel, num_steps: int) -> dict[str, Any]:
    if model.main_input_name == PIXELS:
        return {PIXELS: torch.zeros(1, *image_shape_of(model), dtype=model.dtype, device=model.device)}
    return {"input_ids": sample_ids(model, num_steps).to(model.device), "use_cache": False}


def sample_ids(model: PreTrainedModel, num_steps: int) -> Tensor:
    """Some ids [1, num_steps] that differ and are not the padding's, which a model may treat in a way of its own."""
    config = model.config.get_text_config()
    ids = torch.arange(3, 3 + num_steps) % config.vocab_size
    pad = getattr(config, "pad_token_id", None)
    return torch.where(ids == pad, (ids + 1) % config.vocab_size, ids)[None] if pad is not None else ids[None]


class _Watch:
    """Sits where attention is called, and lets every call go on."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self.body: nn.Module | None = None
        self.calls: list[Seen] = []
        self._masks: dict[int, Mask] = {}
        self._kept: list[Tensor] = []

    def enter(self, part: nn.Module, _: Any) -> None:
        """The first part that runs is the body, not always `base_model`: some heads call a part of that."""
        self.body = self.body or part

    def mask(self, *arguments: Any, **named: Any) -> Tensor:
        """Make the mask as ever, and read from its function what it is beyond the run's few steps."""
        mask = plain_mask(*arguments, **named)
        found = read_mask(named["mask_function"], mask.cpu(), self.horizon)
        self._masks[id(mask)] = found
        # Or another one might get its id.
        self._kept.append(mask)
        return mask

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> Attended:
        """Note what the call says."""
        where = f"layer {len(self.calls)}"
        if query.shape[2] != key.shape[2]:
            raise _Refused(f"{where}: cross-attention: {query.shape[2]} queries and {key.shape[2]} keys")
        if named.get("s_aux") is not None:
            raise _Refused(f"{where}: attention sinks: scores that belong to no key")
        bias = next((name for name, one in named.items() if isinstance(one, Tensor) and one.is_floating_point()), None)
        if bias is not None:
            self._check_bias(bias, module, named, where)
        scale = named.get("scaling")
        self.calls.append(
            Seen(
                module=module,
                num_heads=query.shape[1],
                num_key_heads=key.shape[1],
                head_size=query.shape[3],
                value_size=value.shape[3],
                scale=query.shape[3] ** -0.5 if scale is None else float(scale),
                softcap=float(named.get("softcap") or 0.0),
                has_bias=bias is not None,
                **vars(self._read(mask, module, named, where)),
            )
        )
        # By dot-product, whatever the variant: what a run shows does not depend on it.
        return attend_padded("dot_product", module, query, key, value, mask, **named)

    def _check_bias(self, name: str, module: nn.Module, named: dict[str, Any], where: str) -> None:
        """Refuse a bias that is no number by distance, made by this module or by one before."""
        is_known = makes_bias(module) or any(call.has_bias for call in self.calls)
        if name != "position_bias" or not is_known or not depends_on_distance(named[name]) or named.get("softcap"):
            raise _Refused(f"{where}: scores with a bias ({name}), which attention here does not add")

    def _read(self, mask: Tensor | None, module: nn.Module, named: dict[str, Any], where: str) -> Mask:
        if mask is None:
            causal = named.get("is_causal")
            return Mask(causal=bool(getattr(module, "is_causal", False) if causal is None else causal), window=0)
        if mask.dtype != torch.bool:
            raise _Refused(f"{where}: a mask of {mask.dtype}: scores with a bias, which attention here does not add")
        if id(mask) not in self._masks:
            raise _Refused(f"{where}: a mask that the model has made by itself; expected one of transformers' own")
        found = self._masks[id(mask)]
        if found.window < 0:
            raise _Refused(f"{where}: a mask that is neither causal nor a window, nor both")
        return found


assert set(NAMES) == set(VARIANTS)
