import argparse
from pathlib import Path

import pytest
import torch

from attnserve.cli import main
from attnserve.models import load_checkpoint
from attnserve.models.recipes.command import RECIPES, parse
from attnserve.models.recipes.log import Log

NT = ["nt", "--symbols", "3", "--delay", "2", "--width", "8", "--steps", "4", "--batch", "4", "--starts", "3"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_of_a_run_is_the_run(recipe: str) -> None:
    options = ["--seed", "3", "--gain", "2", "--quiet", "--log", "x.csv", "--steps", "7"]
    arguments = parse(recipe, options)
    command = RECIPES[recipe].command(arguments)

    words = command.split()
    assert words[:3] == ["attnserve", "train", recipe]
    assert "--log" not in words, "the same run, whichever log it is in"
    again = parse(recipe, [*words[3:], "--quiet", "--log", "x.csv"])
    assert again == arguments


def test_a_checkpoint_is_saved_with_one_thread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    assert main(["train", *NT, "--quiet", "--out", str(tmp_path / "x")]) == 0

    assert torch.get_num_threads() == before
    assert load_checkpoint(tmp_path / "x").card["steps"] == 4


def test_a_row_is_added_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    for seed in ("0", "1", "0"):
        assert main(["train", *NT, "--quiet", "--seed", seed, "--log", str(log)]) == 0

    out = capsys.readouterr().out
    assert "has it already: attnserve train nt --symbols 3 --delay 2" in out
    assert [row["seed"] for row in Log(log).rows.values()] == ["0", "1"]
    assert "accuracy 0." in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "out: expected a folder"),
        (["--log", "x.csv", "--out", "y"], "out: a measured run saves no checkpoint"),
        (["--quick", "--log", "x.csv"], "quick: a comparison is printed"),
        (["--quick", "--replicas", "0"], "replicas: expected an integer >= 1"),
        (["--threads", "0", "--out", "y"], "threads: expected an integer >= 1"),
        (["--save-every", "2", "--quick"], "save_every: states are kept in --out"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *NT, "--quiet", *options]) == 1
    assert f"attnserve: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_recipes_have_what_a_recipe_has() -> None:
    for recipe in RECIPES.values():
        parser = argparse.ArgumentParser()
        recipe.add_arguments(parser)
        for options in recipe.COMPARED.values():
            parser.parse_args(options.split())
        assert len({measure.header for measure in recipe.MEASURES}) == len(recipe.MEASURES)
        assert recipe.LESSON.endswith(".")
