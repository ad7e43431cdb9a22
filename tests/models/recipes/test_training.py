import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.recipes.history import History
from attnserve.models.recipes.recurrence import NT, Lengths, batches
from attnserve.models.recipes.resuming import Keeper
from attnserve.models.recipes.training import OPTIMIZERS, TrainingSettings, Watch, train

TASK = NT(symbols=3, delay=3)
LENGTHS = Lengths(shortest=8, longest=8, batch=16)


def new_model() -> Transformer:
    layer = AttentionConfig(variant="expressive")
    config = TransformerConfig(vocabulary_size=3, max_length=8, width=16, num_heads=1, attention=(layer,))
    return Transformer(config, seed=3)


def run(
    seed: int = 0, *, watch: Watch | None = None, keeper: Keeper | None = None, **changes: Any
) -> tuple[Transformer, History]:
    model, settings = new_model(), TrainingSettings(**({"steps": 60, "warmup": 10} | changes))
    data = batches(TASK, LENGTHS, np.random.default_rng(seed))
    return model, train(model, data, settings, watch=watch, keeper=keeper, progress=False)


def weights_of(model: Transformer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.3), ("adamw", 0.01)])
def test_a_short_training_reduces_the_loss(optimizer: str, lr: float) -> None:
    _, history = run(optimizer=optimizer, lr=lr)

    assert len(history.losses) == len(history.rates) == 60
    assert np.mean(history.losses[-10:]) < np.mean(history.losses[:10]) - 0.05
    assert history.scores == {}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_seed_decides_and_global_randomness_does_not(optimizer: str) -> None:
    before = torch.random.get_rng_state()
    first, _ = run(steps=5, optimizer=optimizer, lr=0.01)
    torch.rand(3)
    np.random.default_rng().random()
    second, _ = run(steps=5, optimizer=optimizer, lr=0.01)
    other, _ = run(steps=5, optimizer=optimizer, lr=0.01, seed=1)
    torch.random.set_rng_state(before)

    assert weights_of(first).equal(weights_of(second))
    assert not weights_of(first).equal(weights_of(other))


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


def scored(*scores: float) -> Watch:
    """A watch that sees these, one after the other, every second step."""
    upcoming = iter(scores)
    return Watch(score=lambda: next(upcoming), every=2, stop_at=0.9, patience=3)


def test_two_scores_in_a_row_end_training() -> None:
    _, history = run(watch=scored(0.1, 0.95, 0.2, 0.9, 0.91, 1.0))

    assert len(history.losses) == 10
    assert history.scores == {2: 0.1, 4: 0.95, 6: 0.2, 8: 0.9, 10: 0.91}
    assert (history.first_step_at(0.9), history.first_step_at(0.99)) == (4, None)


def test_patience_ends_training_that_gets_no_better() -> None:
    _, history = run(watch=scored(0.1, 0.3, 0.2, 0.3, 0.1, 0.5))

    assert list(history.scores.values()) == [0.1, 0.3, 0.2, 0.3, 0.1]


def test_a_score_sees_the_model_and_changes_nothing() -> None:
    plain, _ = run(steps=6)
    model, settings, seen = new_model(), TrainingSettings(steps=6, warmup=10), []
    watch = Watch(score=lambda: seen.append(weights_of(model)) or 0.0, every=3)  # type: ignore[func-returns-value]
    train(model, batches(TASK, LENGTHS, np.random.default_rng(0)), settings, watch=watch, progress=False)

    assert not seen[0].equal(seen[1])
    assert seen[1].equal(weights_of(plain))


@pytest.mark.parametrize(("field", "value"), [("every", 0), ("patience", -1)])
def test_a_watch_names_the_field_it_refuses(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected an integer"):
        Watch(**({"score": lambda: 0.0, "every": 1} | {field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(optimizer: str, tmp_path: Path) -> None:
    whole, expected = run(steps=12, optimizer=optimizer, lr=0.01)
    keeper = Keeper(path=tmp_path / "state", every=4, command="this run")

    def die() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(steps=12, optimizer=optimizer, lr=0.01, keeper=keeper, watch=Watch(score=die, every=6))
    model, history = run(steps=12, optimizer=optimizer, lr=0.01, keeper=keeper)

    assert weights_of(model).equal(weights_of(whole))
    assert history == expected
    # It is where the state was: nothing is left to do.
    _, again = run(steps=12, optimizer=optimizer, lr=0.01, keeper=keeper, watch=Watch(score=die, every=1))
    assert again == expected


def test_a_state_is_of_its_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    run(steps=2, keeper=Keeper(path=path, every=1, command="one"))
    with pytest.raises(ValueError, match=r"^out: .* is the state of another run: one; remove it to begin anew"):
        run(steps=2, keeper=Keeper(path=path, every=1, command="another"))
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"^out: .* is no state of a training: "):
        run(steps=2, keeper=Keeper(path=path, every=1, command="one"))
