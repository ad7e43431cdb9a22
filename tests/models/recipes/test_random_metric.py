import pytest
import torch

from attnserve.models import Transformer, TransformerConfig, layers_of
from attnserve.models.attention.recording import attention_layers
from attnserve.models.recipes.random_metric import draw_metrics, random_metric

SLOTS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 6]])


def draw(seed: int = 0, scaling: str = "max") -> torch.Tensor:
    value = torch.zeros(6, 2, 3)
    return random_metric(value, value, SLOTS, scaling=scaling, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scaling", ["max", "mean"])
def test_every_sequence_and_head_has_a_metric_of_its_own(scaling: str) -> None:
    metric = draw(scaling=scaling)

    assert metric.shape == (6, 2, 3)
    # The same at all steps of a sequence, so nothing of the future or the past is in it.
    assert metric[0].equal(metric[3])
    assert metric[4].equal(metric[5])
    assert len({tuple(head.tolist()) for row in (metric[0], metric[4]) for head in row}) == 4
    norm = metric.amax(-1) if scaling == "max" else metric.mean(-1)
    torch.testing.assert_close(norm, torch.ones_like(norm))


def test_it_is_drawn_anew_from_the_generator_alone() -> None:
    assert draw().equal(draw())
    assert not draw().equal(draw(seed=1))
    config = TransformerConfig(
        vocabulary_size=5,
        max_length=6,
        width=8,
        num_heads=2,
        attention=layers_of("elliptical", 2, scope="prefix", scaling="max"),
    )
    model = Transformer(config)
    draw_metrics(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (model.predict([[1, 2, 3, 4]])[0] for _ in range(2))
    assert not first.equal(second)
    assert attention_layers(model)[0].measure is None, "layer 0 has no metric"
