"""While a model is traced its attention is symbolic; before and after, it is PyTorch's."""

import copy

import numpy as np
import onnx
import pytest
import torch

from attnserve.export.lowering import lowered
from attnserve.export.subject import Subject, find_layers
from attnserve.export.trace import trace
from attnserve.models import Attention, AttentionConfig, Transformer, TransformerConfig

pytestmark = pytest.mark.export


@pytest.fixture
def model() -> Transformer:
    layers = (AttentionConfig(), AttentionConfig(variant="elliptical", scope="prefix", scaling="max"))
    return Transformer(TransformerConfig(vocabulary_size=4, max_length=9, width=4, num_heads=2, attention=layers))


def functions_of(model: Transformer) -> list[object]:
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    return [function for layer in layers for function in (layer.attend, layer.measure)]


def gradients_of(model: Transformer) -> list[torch.Tensor]:
    model.zero_grad()
    logits = torch.cat(model.predict([np.array([0, 1, 2, 3]), np.array([3, 3])]))
    logits.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_functions_are_swapped_inside_and_put_back_after(model: Transformer) -> None:
    before = functions_of(model)
    with lowered(model):
        inside = functions_of(model)
        assert all(new is not old for new, old in zip(inside, before, strict=True) if old is not None)
        # The first layer has no metric, and gets none.
        assert [function is None for function in inside] == [False, True, False, False]
    assert all(new is old for new, old in zip(functions_of(model), before, strict=True))


def test_functions_are_put_back_after_an_exception(model: Transformer) -> None:
    before = functions_of(model)
    with pytest.raises(KeyboardInterrupt), lowered(model):
        raise KeyboardInterrupt
    assert all(new is old for new, old in zip(functions_of(model), before, strict=True))


def test_lowering_twice_unwinds_in_order(model: Transformer) -> None:
    before = functions_of(model)
    with lowered(model), lowered(model):
        pass
    assert all(new is old for new, old in zip(functions_of(model), before, strict=True))


def test_a_traced_model_trains_as_if_nothing_had_been(model: Transformer) -> None:
    interface = model.config.interface
    layers = find_layers(model, interface, np.array([0, 1]))
    before = gradients_of(model)
    assert len(before) == len(list(model.parameters()))
    state = copy.deepcopy(model.state_dict())
    graph = trace(Subject(module=model, interface=interface, layers=layers, precision="float32"))
    assert [node.op_type for node in graph.graph.node if node.domain == "attnserve"] == [
        "DotProductAttention",
        "EllipticalMetric",
        "DotProductAttention",
    ]
    after = gradients_of(model)
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_attributes_are_those_of_the_config() -> None:
    config = AttentionConfig(variant="expressive", scale=0.75, epsilon=0.25, window=3, softcap=2.0)
    from attnserve.export.lowering import _Attend

    node = _Attend(Attention(config, head_size=4, causal=False))
    assert node.op == "ExpressiveAttention"
    assert node.attributes == {"causal": 0, "scale": 0.75, "epsilon": 0.25, "window": 3, "softcap": 2.0}
    # ONNX tells integers from floats: an attribute of the wrong kind would be another attribute.
    assert [type(value) for value in node.attributes.values()] == [int, float, float, int, float]


@pytest.mark.parametrize("scope", ["prefix", "sequence-leaky"])
@pytest.mark.parametrize("scaling", ["max", "mean"])
def test_attributes_of_the_metric(scope: str, scaling: str) -> None:
    from attnserve.export.lowering import _Measure

    config = AttentionConfig(variant="elliptical", scope=scope, scaling=scaling)
    node = _Measure(Attention(config, head_size=4, causal=True))
    assert node.op == "EllipticalMetric"
    assert node.attributes == {"prefix": int(scope == "prefix"), "mean": int(scaling == "mean")}


def test_no_metadata_of_the_exporter_survives(small_bundle) -> None:
    graph = onnx.load(small_bundle / "model.onnx")
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    assert not any(node.metadata_props or node.doc_string for node in nodes)
