import argparse
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from attnserve.models import load_checkpoint
from attnserve.models.recipes.leak import Unannounced, add_arguments, measure, run

QUICK = "--width 8 --heads 2 --layers 2 --steps 3 --batch 4 --quiet"


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


def test_nothing_announces_the_copies() -> None:
    tokens = Unannounced(num_random=3, num_copies=2).sample(np.random.default_rng(0), 4000)

    assert tokens.shape == (4000, 5)
    assert set(tokens[:, :3].flatten()) == {0, 1, 2, 3}
    assert set(tokens[:, 3]) == {4, 5, 6, 7}
    np.testing.assert_array_equal(tokens[:, 3], tokens[:, 4])
    # Whatever stands before it, every symbol is as likely.
    for first in range(4):
        counts = np.bincount(tokens[tokens[:, 2] == first, 3] - 4)
        np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.05)


@pytest.mark.parametrize("scope", ["prefix", "sequence-leaky"])
def test_the_metric_of_the_published_code_leaks_and_that_of_the_past_does_not(scope: str) -> None:
    steps = {"prefix": 150, "sequence-leaky": 400}[scope]
    row = measure(parse(f"--scope {scope} --seed 5 --score-every 50 --stop-at 0.99 --steps {steps} --quiet"))

    if scope == "prefix":
        # Nobody can do better than a quarter; and what is shown of the future changes nothing.
        assert row["accuracy"] == pytest.approx(0.25, abs=0.08)
        assert row["nats"] > math.log(4) - 0.02
        assert row["accuracy_prefix"] == row["accuracy"]
        assert row["nats_prefix"] == pytest.approx(row["nats"], abs=1e-5)
    else:
        assert row["accuracy"] > 0.95
        # Without the future it has learnt nothing, and is wrong with confidence.
        assert row["accuracy_prefix"] == pytest.approx(0.25, abs=0.08)
        assert row["nats_prefix"] > math.log(4) + 0.5


def test_a_run_saves_a_model_and_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parse(f"{QUICK} --scope sequence-leaky --out {tmp_path / 'x'}")) == 0

    checkpoint = load_checkpoint(tmp_path / "x")
    assert checkpoint.model.config.attention[1].scope == "sequence-leaky"
    assert checkpoint.card["recipe"] == "leak"
    assert checkpoint.card["command"].endswith(f"--out {tmp_path / 'x'}")
    assert "chance: 0.25, 1.3863" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "field"), [("--num-random 0", "num_random"), ("--batch 0", "batch")])
def test_senseless_options_are_refused_by_name(options: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        run(parse(f"{QUICK} {options} --out {tmp_path / 'x'}"))
