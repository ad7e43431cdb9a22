import argparse
import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from attnserve.models import load_checkpoint
from attnserve.models.recipes.conditioning import conditioning_over, observe
from attnserve.models.recipes.digits import add_arguments, batches, config_of, fit, measure, run
from attnserve.models.recipes.digits_scores import accuracy
from attnserve.models.recipes.images import Digits, cut_patches, load_digits, split_digits

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
COMMITTED = CHECKPOINTS / "digits-elliptical"
QUICK = "--width 8 --heads 2 --steps 3 --batch 8 --quiet"


def parse(options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(shlex.split(options))


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


def test_every_option_has_a_help_text_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for action in parser._actions:
        if action.dest != "help":
            assert "default" in (action.help or ""), action.dest


@pytest.mark.parametrize(("pooling", "length", "answer"), [("first", 17, 0), ("last", 16, 15), ("mean", 16, 0)])
def test_batches_hold_every_image_once(digits: Digits, pooling: str, length: int, answer: int) -> None:
    few = Digits(images=digits.images[:20], classes=digits.classes[:20])
    interface = config_of(parse(f"--pooling {pooling} --out x")).interface
    found = list(itertools.islice(batches(few, interface, np.random.default_rng(0), num_images=8), 6))

    assert [len(batch.targets) for batch in found] == [8, 8, 4, 8, 8, 4]
    assert found[0].slots.tolist() == torch.arange(8 * length).view(8, length).tolist()
    assert found[0].rows.tolist() == [start * length + answer for start in range(8)]
    expected = {
        (number, patches.tobytes()) for number, patches in zip(few.classes, cut_patches(few.images), strict=True)
    }
    for epoch in (found[:3], found[3:]):
        seen = set()
        for batch in epoch:
            rows = batch.inputs.view(-1, length, 4)
            assert pooling != "first" or not rows[:, 0].any(), "the leading row is the model's to fill"
            images = rows[:, -16:].numpy()
            seen |= {(target, image.tobytes()) for target, image in zip(batch.targets.tolist(), images, strict=True)}
        assert seen == expected
    assert not torch.equal(found[0].targets, found[3].targets), "every time in another order"


@pytest.mark.parametrize(
    ("variant", "pooling"), [("elliptical", "first"), ("expressive", "mean"), ("dot_product", "last")]
)
def test_a_run_saves_a_model_and_its_card(
    variant: str, pooling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parse(f"{QUICK} --variant {variant} --pooling {pooling} --out '{tmp_path}/a model'")
    assert run(arguments) == 0

    checkpoint = load_checkpoint(tmp_path / "a model")
    card, config = checkpoint.card, checkpoint.model.config
    assert (card["recipe"], card["variant"], card["steps"]) == ("digits", variant, 3)
    assert (card["num_train_images"], card["num_test_images"]) == (1438, 359)
    assert card["parameters"] == sum(parameter.numel() for parameter in checkpoint.model.parameters())
    assert set(card["trained_with"]) == {"attnserve", "python", "torch", "numpy", "scikit-learn"}
    assert (config.task, config.num_features, config.max_length) == ("classify_sequence", 4, 16)
    assert (config.causal, config.pooling, config.positions) == (False, pooling, "learned")
    assert config.labels == tuple("0123456789")
    layers = [layer.variant for layer in config.attention]
    assert layers == (["dot_product", "elliptical"] if variant == "elliptical" else [variant])
    assert config.attention[-1].scope == ("sequence" if variant == "elliptical" else None)
    assert f"test accuracy: {card['test_accuracy']:.6f} of 359 images" in capsys.readouterr().out


def test_the_command_of_the_card_is_the_run(tmp_path: Path) -> None:
    arguments = parse(f"{QUICK} --seed 3 --out '{tmp_path}/a model'")
    run(arguments)
    card = load_checkpoint(tmp_path / "a model").card

    again = parse(card["command"].removeprefix("attnserve train digits ") + " --quiet")
    assert vars(again) == vars(arguments)
    again.out = str(tmp_path / "again")
    run(again)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert {**load_checkpoint(again.out).card, "command": ""} == {**card, "command": ""}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ("--batch 0", "batch"),
        ("--threads 0", "threads"),
        ("--seed -1", "seed"),
        ("--steps 0", "steps"),
        ("--lr 0", "lr"),
        ("--layers 1", "layers"),
        ("--variant expressive --scope sequence", "scope"),
        ("--heads 3", "num_heads"),
    ],
)
def test_senseless_options_are_refused_by_name(options: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        run(parse(f"{QUICK} {options} --out {tmp_path / 'x'}"))
    assert not (tmp_path / "x").exists(), "nothing is left behind"


def test_a_folder_with_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^out: "):
        run(parse(f"{QUICK} --out {tmp_path}"))


def test_the_committed_checkpoint_scores_what_its_card_says(digits: Digits) -> None:
    checkpoint = load_checkpoint(COMMITTED)
    model, card = checkpoint.model, checkpoint.card
    train_digits, test_digits = split_digits(digits, seed=card["seed"])

    assert card["test_accuracy"] >= 0.97
    # Another machine rounds differently; one image may be that close to the border of two classes.
    assert accuracy(model, test_digits) == pytest.approx(card["test_accuracy"], abs=1.5 / len(test_digits))
    assert accuracy(model, train_digits) == pytest.approx(card["train_accuracy"], abs=1.5 / len(train_digits))
    assert card["num_test_images"] == len(test_digits)
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert sum(file.stat().st_size for file in COMMITTED.iterdir()) < 300_000

    found = conditioning_over(model, list(cut_patches(test_digits.images[:20])))
    assert (found.num_sequences, found.max_length) == (20, 16)
    for rounding in (card["conditioning"], vars(found)):
        assert 0 < rounding["logits"] <= 2e-6
        assert 0 < rounding["weights"] <= 2e-6


def test_the_answering_row_of_the_committed_checkpoint_looks_at_patches(digits: Digits) -> None:
    """A map has 17 rows: the leading one, then the patches."""
    seen = observe(load_checkpoint(COMMITTED).model, cut_patches(digits.images[:1])[0])

    assert seen.logits.shape == (1, 10)
    assert [tuple(weights.shape) for weights in seen.weights] == [(4, 17, 17)] * 2
    assert (seen.weights[-1][:, 0, 1:].sum(-1) > 0.1).any()


def test_one_script_trains_the_committed_checkpoint() -> None:
    script = (CHECKPOINTS / "train.sh").read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("attnserve train digits")]

    card = json.loads((COMMITTED / "card.json").read_text("utf-8"))
    assert commands == [shlex.split(card["command"])]


@pytest.mark.parametrize("metric", ["estimated", "random"])
def test_measures_are_columns_of_a_log(metric: str) -> None:
    row = measure(parse(f"{QUICK} --metric {metric}"))

    assert list(row) == [
        *("accuracy", "noise", "occlusion", "fgsm", "pgd", "pgd_through_metric"),
        *(f"similarity_{layer}" for layer in (1, 2, 3, 4)),
        *("train_accuracy", "steps", "cpu_seconds"),
    ]
    assert (row["pgd_through_metric"] is None) == (metric == "random")
    assert row["similarity_2"] is not None
    assert row["similarity_3"] is None


def test_scores_on_the_way_are_of_images_of_their_own(digits: Digits) -> None:
    fitted = fit(parse(f"{QUICK} --score-every 2 --stop-at 0"))

    assert list(fitted.trained.history.scores) == [2]
    assert len(fitted.train_digits) == pytest.approx(0.9 * 1438, abs=5)
    assert len(fitted.test_digits) == 359
