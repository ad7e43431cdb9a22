"""Every damage to a checkpoint is refused at once, in words of its own, before anything is built."""

import io
import os
import random
import shutil
from pathlib import Path

import pytest

from attnserve.export.child import MAX_REASON, Channel, judge
from soak.damaged import DAMAGES, draw_damage

pytestmark = pytest.mark.export

SEEDS = range(4)


@pytest.fixture
def source(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@pytest.mark.parametrize("seed", SEEDS)
def test_every_damage_is_refused_at_once_in_words_of_its_own(source, folder, damage, seed):
    damage(source, random.Random(seed))
    verdict = judge(source, folder, "float32", False, Channel(io.StringIO()))
    outcome = verdict.outcome
    assert (outcome.state, outcome.step, verdict.manifest_sha256) == ("failed", "load", None)
    # By its file, not by where that lies; and by what was looked for, not by what broke.
    assert outcome.reason.split(":")[0] in ("config.json", "model.safetensors", "tokenizer.json", "card.json")
    assert "unexpected" not in outcome.reason
    assert len(outcome.reason) <= MAX_REASON
    assert outcome.reason.isprintable()
    assert os.listdir(folder) == []


def test_one_checkpoint_of_each_damage_differs_in_words(source, folder, checkpoint):
    reasons = set()
    for damage in DAMAGES:
        shutil.rmtree(source)
        shutil.copytree(checkpoint, source)
        damage(source, random.Random(1))
        reasons.add(judge(source, folder, "float32", False, Channel(io.StringIO())).outcome.reason)
    assert len(reasons) > len(DAMAGES) - 4


def test_the_same_seed_draws_the_same(source, checkpoint, tmp_path):
    first = draw_damage(source, random.Random(7))
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    assert draw_damage(other, random.Random(7)) == first
    assert {path.name: path.stat().st_size for path in source.iterdir()} == {
        path.name: path.stat().st_size for path in other.iterdir()
    }
