import re
from typing import Any

import numpy as np
import pytest
import torch

from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.recipes.recurrence import NT, Lengths, batches
from attnserve.models.recipes.training import OPTIMIZERS, TrainingSettings, train

TASK = NT(symbols=3, delay=3)
LENGTHS = Lengths(shortest=8, longest=8, batch=16)


def new_model() -> Transformer:
    layer = AttentionConfig(variant="expressive")
    config = TransformerConfig(vocabulary_size=3, max_length=8, width=16, num_heads=1, attention=(layer,))
    return Transformer(config, seed=3)


def run(seed: int = 0, **changes: Any) -> tuple[Transformer, list[float]]:
    model, settings = new_model(), TrainingSettings(**({"steps": 60, "warmup": 10} | changes))
    losses = train(model, batches(TASK, LENGTHS, np.random.default_rng(seed)), settings, progress=False)
    return model, losses


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.3), ("adamw", 0.01)])
def test_a_short_training_reduces_the_loss(optimizer: str, lr: float) -> None:
    _, losses = run(optimizer=optimizer, lr=lr)

    assert len(losses) == 60
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.05


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_seed_decides_and_global_randomness_does_not(optimizer: str) -> None:
    before = torch.random.get_rng_state()
    first, _ = run(steps=5, optimizer=optimizer, lr=0.01)
    torch.rand(3)
    np.random.default_rng().random()
    second, _ = run(steps=5, optimizer=optimizer, lr=0.01)
    other, _ = run(steps=5, optimizer=optimizer, lr=0.01, seed=1)
    torch.random.set_rng_state(before)

    weights = [torch.cat([parameter.flatten() for parameter in model.parameters()]) for model in (first, second, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_the_progress_bar_shows_loss_and_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    data = batches(TASK, LENGTHS, np.random.default_rng(0))
    train(new_model(), data, TrainingSettings(steps=3))

    assert re.search(r"3/3 .*accuracy=[01]\.\d+.*loss=\d+\.\d+", capsys.readouterr().err)


def test_the_rate_rises_stays_and_falls() -> None:
    settings = TrainingSettings(steps=10, lr=8.0, warmup=4, cooldown=3)

    assert [settings.rate_at(step) for step in range(10)] == [2, 4, 6, 8, 8, 8, 8, 6, 4, 2]
    assert TrainingSettings(steps=1, lr=8.0, warmup=0).rate_at(0) == 8


def test_a_diverging_run_says_so() -> None:
    model = new_model()
    with torch.no_grad():
        model.unembedding.weight.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="loss is nan at step 0; try a smaller rate than"):
        train(model, batches(TASK, LENGTHS, np.random.default_rng(0)), TrainingSettings(steps=1), progress=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer", "lion"), ("steps", 0), ("warmup", -1), ("cooldown", -1), ("lr", 0.0), ("lr", float("nan"))],
)
def test_settings_name_the_field_they_refuse(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        TrainingSettings(**({"steps": 1} | {field: value}))  # type: ignore[arg-type]
