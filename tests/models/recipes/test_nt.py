import argparse
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from attnserve.models import TransformerConfig, load_checkpoint
from attnserve.models.attention import VARIANTS
from attnserve.models.recipes.accuracy import free_running_accuracy, greedy, teacher_forced_accuracy
from attnserve.models.recipes.conditioning import measure_conditioning
from attnserve.models.recipes.nt import add_arguments, command, measure, run
from attnserve.models.recipes.nt_scores import measure_lookback
from attnserve.models.recipes.recurrence import NT

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
NAMES = ("nt-expressive", "nt-elliptical", "nt-dot-product")
QUICK = "--symbols 3 --delay 2 --width 8 --steps 4 --batch 4 --starts 3 --quiet"


def parse(options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(shlex.split(options))


def test_every_option_has_a_help_text_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for action in parser._actions:
        if action.dest != "help":
            assert "default" in (action.help or ""), action.dest


def test_defaults_are_the_regime_that_tells_variants_apart() -> None:
    arguments = parse("--variant expressive --symbols 8 --delay 16 --out there")

    assert (arguments.optimizer, arguments.momentum, arguments.batch, arguments.width) == ("sgd", 0.8, 32, 32)
    assert command(arguments) == ("attnserve train nt --symbols 8 --delay 16 --variant expressive --seed 0 --out there")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_saves_a_model_and_its_card(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse(f"{QUICK} --variant {variant} --optimizer adamw --bias --out '{tmp_path}/a model'")
    assert run(arguments) == 0

    checkpoint = load_checkpoint(tmp_path / "a model")
    card, config = checkpoint.card, checkpoint.model.config
    assert (card["recipe"], card["symbols"], card["delay"], card["variant"]) == ("nt", 3, 2, variant)
    assert (config.vocabulary_size, config.max_length, config.labels) == (3, 6, ("s0", "s1", "s2"))
    assert config.attention[-1].variant == variant
    assert config.num_layers == (2 if variant == "elliptical" else 1)
    assert f"teacher forced accuracy: {card['teacher_forced_accuracy']:.6f}" in capsys.readouterr().out

    # The command in the card is the run: same weights, same card.
    again = parse(card["command"].removeprefix("attnserve train nt ") + " --quiet")
    assert {**vars(again), "lr": None} == {**vars(arguments), "lr": None}
    again.out = str(tmp_path / "again")
    run(again)
    capsys.readouterr()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert {**load_checkpoint(again.out).card, "command": ""} == {**card, "command": ""}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ("--symbols 1", "symbols"),
        ("--delay 0", "delay"),
        ("--batch 0", "batch"),
        ("--seed -1", "seed"),
        ("--steps 0", "steps"),
        ("--length 20 --max-length 10", "max_length"),
        ("--length 2 --delay 3", "length"),
        ("--variant elliptical --layers 1", "layers"),
        ("--scope prefix", "scope"),
        ("--variant dot_product --epsilon 1", "epsilon"),
        ("--heads 3", "num_heads"),
        ("--delays 3 3", "delays"),
        ("--gain 0", "gain"),
        ("--metric random", "metric"),
        ("--variant elliptical --metric random", "metric"),
        ("--score-every -1", "score_every"),
        ("--stop-at 0.9", "stop_at"),
        ("--patience 2", "patience"),
        ("--save-every -1", "save_every"),
    ],
)
def test_senseless_options_are_refused_by_name(options: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        run(parse(f"{QUICK} {options} --out {tmp_path / 'x'}"))
    assert not (tmp_path / "x").exists(), "nothing is left behind"


@pytest.mark.parametrize("name", NAMES)
def test_committed_checkpoints_score_what_their_cards_say(name: str) -> None:
    checkpoint = load_checkpoint(CHECKPOINTS / name)
    model, card = checkpoint.model, checkpoint.card
    task = NT(symbols=card["symbols"], delay=card["delay"])
    generator = np.random.default_rng(2024)

    assert card["free_running_accuracy"] == card["free_running_sequences_exact"] == 1
    scores = free_running_accuracy(greedy(model), task, task.sample(generator, 16, task.delay), model.config.max_length)
    assert scores.tokens_right == card["free_running_accuracy"]
    sequences = task.sample(generator, 4, model.config.max_length)
    assert teacher_forced_accuracy(greedy(model), task, sequences) == card["teacher_forced_accuracy"]
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())

    # Bounds with room for the server, which may be no further off than four times this.
    assert card["conditioning"]["logits"] <= 1.2e-5
    assert card["conditioning"]["weights"] <= 2.5e-5
    found = measure_conditioning(model, generator, num_sequences=8)
    assert found.logits <= 1.2e-5
    assert found.weights <= 2.5e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_head_of_a_committed_checkpoint_looks_back(name: str) -> None:
    checkpoint = load_checkpoint(CHECKPOINTS / name)
    task = NT(symbols=checkpoint.card["symbols"], delay=checkpoint.card["delay"])
    sequences = task.sample(np.random.default_rng(7), 4, 512)

    for found, stated in zip(
        measure_lookback(checkpoint.model, task, sequences), checkpoint.card["lookback"], strict=True
    ):
        assert found["mean_weight"] == pytest.approx(stated["mean_weight"], abs=0.1)
    assert max(head["mean_weight"] for head in checkpoint.card["lookback"]) > 0.4


def test_committed_checkpoints_are_small_and_alike() -> None:
    tasks, variants = set(), []
    for name in NAMES:
        folder = CHECKPOINTS / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000
        checkpoint = load_checkpoint(folder)
        config: TransformerConfig = checkpoint.model.config
        tasks.add((checkpoint.card["symbols"], checkpoint.card["delay"], config.max_length, config.labels))
        variants.append(config.attention[-1].variant)
    assert len(tasks) == 1
    assert variants == [name.removeprefix("nt-").replace("-", "_") for name in NAMES]


def test_one_script_trains_the_committed_checkpoints() -> None:
    script = (CHECKPOINTS / "train.sh").read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("attnserve train nt")]

    cards = [json.loads((CHECKPOINTS / name / "card.json").read_text("utf-8")) for name in NAMES]
    assert commands == [shlex.split(card["command"]) for card in cards]


@pytest.mark.parametrize("place", ["taken", "file", "file/below"])
def test_a_folder_that_cannot_be_used_is_refused_before_training(tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^out: "):
        run(parse(f"--variant expressive --symbols 4 --delay 4 --quiet --out {tmp_path / place}"))


def test_a_gain_multiplies_the_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, scale in (("--gain 3", 3 / 8**0.5), ("--gain 3 --scale 0.5", 1.5), ("", 1 / 8**0.5)):
        run(parse(f"{QUICK} {options} --out {tmp_path / str(scale)}"))
        (layer,) = load_checkpoint(tmp_path / str(scale)).model.config.attention
        assert layer.scale == pytest.approx(scale)


def test_several_delays_make_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(parse(f"{QUICK} --delays 2 3 --out {tmp_path / 'x'}"))
    card, config = load_checkpoint(tmp_path / "x").card, load_checkpoint(tmp_path / "x").model.config

    assert (card["delay"], config.max_length) == ([2, 3], 12)
    assert "lookback" not in card
    assert "of 6 tokens, and as many of every delay" in card["free_running_protocol"]


def test_measures_are_columns_of_a_log() -> None:
    row = measure(parse(f"{QUICK} --variant dot_product --max-length 24 --score-every 2"))

    assert list(row) == [
        "accuracy",
        "free_running_exact",
        *(f"accuracy_to_{multiple}x" for multiple in (2, 4, 8)),
        *("steps", "steps_to_solved", "cpu_seconds"),
    ]
    assert row["steps"] == 4
    assert row["steps_to_solved"] is None
    # A training length of 6: 12 and 24 fit, 48 does not.
    assert 0 <= row["accuracy_to_2x"] <= 1
    assert 0 <= row["accuracy_to_4x"] <= 1
    assert row["accuracy_to_8x"] is None


def test_a_killed_run_leaves_a_state_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    run(parse(f"{QUICK} --out {plain}"))
    command_line = f"{QUICK} --save-every 2 --curve {tmp_path / 'curve.csv'} --out {kept}"
    monkeypatch.setattr("attnserve.models.recipes.nt.score", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(parse(command_line))
    assert (kept / "training.safetensors").exists()
    monkeypatch.undo()
    run(parse(command_line))

    assert not (kept / "training.safetensors").exists()
    assert (kept / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert (tmp_path / "curve.csv").read_text().splitlines()[0] == "step,loss,rate,score"
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 5
