"""What is exported, and what is taken as it is."""

import dataclasses
import threading
from pathlib import Path

import pytest

from benchmarks.gpu import bundles
from benchmarks.gpu.plan import plan_for


@pytest.fixture
def exports(monkeypatch):
    """Commands instead of what they would do; one of a model named `bad` fails."""
    said, lock = [], threading.Lock()

    def run(*words, threads):
        with lock:
            said.append(" ".join(words))
        if "export" in words:
            Path(words[4]).mkdir(parents=True, exist_ok=True)
        return not any("/bad" in word for word in words)

    monkeypatch.setattr(bundles, "_run", run)
    return said


def test_what_is_there_stays_unless_other_code_made_it(bundle, exports):
    committed = dataclasses.replace(bundle, model="nt-expressive")
    committed.folder.mkdir(parents=True)
    (committed.folder / "manifest.json").touch()
    committed.stamp.write_text(bundles.hash_code())
    assert bundles.prepare([committed]) == []
    assert exports == []
    committed.stamp.write_text("other")
    assert bundles.prepare([committed]) == []
    assert len(exports) == 1
    # What was there has made room: nobody exports onto a bundle.
    assert not (committed.folder / "manifest.json").exists()
    assert committed.stamp.read_text() == bundles.hash_code()


def test_what_is_missing_is_exported_once(bundle, exports, tmp_path):
    committed = dataclasses.replace(bundle, model="nt-expressive", precision="float16")
    assert bundles.prepare([committed, committed]) == []
    (command,) = exports
    place = tmp_path / "float16" / "nt-expressive" / "nt-expressive" / "1"
    checkpoint = bundles.ROOT / "checkpoints" / "nt-expressive"
    assert command == f"-m attnserve export {checkpoint} {place} --precision float16 --top-k 4"


def test_models_that_are_committed_nowhere_are_made_first(bundle, exports):
    wanted = [dataclasses.replace(bundle, model=name) for name in (bundles.REFERENCE, bundles.LARGE)]
    assert bundles.prepare(wanted) == []
    assert [command.split("save_")[1].split("(")[0] for command in exports[:2]] == ["reference", "large"]
    assert sorted(command.split()[2] for command in exports[2:]) == ["export", "export"]


def test_those_that_could_not_be_are_named(bundle, exports):
    bad = dataclasses.replace(bundle, model="bad")
    (bad.checkpoint).mkdir(parents=True)
    (bad.checkpoint / "config.json").touch()
    assert bundles.prepare([bad]) == [bad]


def test_a_gpu_is_asked_for_every_checkpoint_in_every_precision():
    plan = plan_for("cuda", "somewhere")
    found = {(bundle.model, bundle.precision) for bundle in plan.bundles()}
    names = {path.parent.name for path in bundles.ROOT.glob("checkpoints/*/config.json")}
    assert names
    expected = {(model, precision) for model in names for precision in ("float32", "float16", "bfloat16")}
    assert expected <= found
    assert {(bundle.model, bundle.precision) for bundle in plan.timed_bundles()} <= found
    assert plan.num_requests == 10_000
    assert plan.range_of(1024) == (8, 512)
