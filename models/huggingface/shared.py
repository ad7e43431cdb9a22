"""Layers that share a module, as ALBERT's do: one module with one set of weights, run again and again.

Everything behind an export tells layers apart by their modules. So each gets one of its own, with the same tensors.
"""

import copy

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.albert.modeling_albert import AlbertTransformer


def shares_layers(model: nn.Module) -> bool:
    """Whether `unshare` can tell a model's layers apart."""
    return any(isinstance(part, AlbertTransformer) for part in model.modules())


def unshare(model: PreTrainedModel) -> None:
    """Give every layer of an ALBERT a module of its own, in place, with the tensors that it shares; others stay."""
    for part in model.modules():
        if isinstance(part, AlbertTransformer):
            config, groups = part.config, part.albert_layer_groups
            # As its `forward` chooses them.
            layers_per_group = config.num_hidden_layers / config.num_hidden_groups
            chosen = [groups[int(index / layers_per_group)] for index in range(config.num_hidden_layers)]
            part.albert_layer_groups = nn.ModuleList(_twin(group, config) for group in chosen)
            config.num_hidden_groups = config.num_hidden_layers


def _twin(module: nn.Module, config: PretrainedConfig) -> nn.Module:
    # The config too: by it the model tells its layers how to attend.
    kept = [config, *module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(one): one for one in kept})
