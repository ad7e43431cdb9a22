"""A job from its order to its outcome, by a worker that builds nothing."""

import os
import re
from pathlib import Path

import pytest

from attnserve.bundle import read_manifest
from attnserve.jobs import PROGRESS, STEPS
from attnserve.repository import Repository, find_versions
from tests.worker.conftest import Jobs, make_places, make_url, running, wait_until

WAITS = "open(f'{folder}/waits', 'w').close(); time.sleep(600)"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("worker"))


@pytest.fixture(scope="module")
def jobs(places):
    """The jobs of a worker that runs."""
    url = make_url(places.repository.parent)
    jobs = Jobs(url, places)
    with running(url, places):
        yield jobs
    jobs.client.destroy()


@pytest.fixture
def model(request, places):
    """A folder of its own for every test; no test leaves anything but what it has published."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    yield places.repository / name
    wait_until(lambda: not places.find_jobs(), "an end without anything left")


@pytest.fixture
def ask(jobs, model):
    """`ask(config, **fields)`: queue an order for the test's model."""
    return lambda config="", **fields: jobs.add(config, **{"model": model.name, **fields})


def is_building(model) -> bool:
    return any(model.glob(".tmp-*/waits"))


def make_version(model, version: int) -> None:
    folder = model / str(version)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(f"{version} by hand")


def active(model) -> int | None:
    return Repository(model.parent).choose_version(model.name, tuple(find_versions(model)))


def test_an_order_becomes_a_version(jobs, model, ask):
    job = ask(portable=True, precision="float16", top_k=5)
    outcome = jobs.outcome(job)
    assert outcome["state"] == "succeeded"
    assert outcome["parity"]["logits"] == {"reference": 1e-7, "allowed": 4e-7, "measured": 2e-7}
    assert outcome["parity"]["table"] == "a table"
    # Nothing but the version is left, of the work neither.
    assert os.listdir(model) == ["1"]
    made = read_manifest(model / "1").card
    assert made["flags"] == ["--precision", "float16", "--portable", "--top-k", "5"]
    assert made["made by"].startswith(f".tmp-{job}.")


def test_every_step_is_told_in_order(jobs, ask):
    job = ask()
    jobs.outcome(job)
    lines = list(jobs.client.read_stream(job, "log"))
    assert [line["step"] for line in lines] == ["fetch", "load", "graph", "verify", "publish", "activate"]
    assert [line["fraction"] for line in lines] == [STEPS[line["step"]] for line in lines]
    assert lines[1]["message"] == "doing load"
    assert lines == sorted(lines, key=lambda line: line["at"])
    assert jobs.client.get_event(job, PROGRESS, timeout_seconds=0) == lines[-1]


def test_an_upload_is_taken_by_its_hash(jobs, places, ask):
    assert jobs.outcome(ask("# uploaded", is_uploaded=True))["state"] == "succeeded"
    # And stays as it was.
    assert len(list((places.checkpoints / ".blobs").iterdir())) == 2


@pytest.mark.parametrize(
    ("fields", "step", "reason"),
    [
        ({"files": {"../../x": "0" * 64}}, "fetch", "files: expected a sha256 for some of config.json, "),
        ({"files": {"config.json": "../../x"}}, "fetch", "files: expected a sha256 for some of config.json, "),
        ({"files": {"config.json": "0" * 64}}, "fetch", "checkpoint: config.json: expected sha256 0000"),
        ({"files": {"card.json": "0" * 64}}, "fetch", "checkpoint: card.json: cannot be read any more"),
        ({"checkpoint": "gone"}, "fetch", "checkpoint: config.json: the upload is gone; upload it again"),
    ],
    ids=["name", "hash", "changed", "missing", "no upload"],
)
def test_an_order_that_cannot_be_filled_fails_by_name(jobs, places, model, ask, fields, step, reason):
    outcome = jobs.outcome(ask(**fields))
    assert (outcome["state"], outcome["step"]) == ("failed", step)
    assert outcome["reason"].startswith(reason)
    assert str(places.repository.parent) not in outcome["reason"]
    assert not model.exists()


@pytest.mark.parametrize(
    ("config", "step", "reason"),
    [
        ("conclude('failed', step='load', reason='config.json: width: missing'); sys.exit()", "load", "config.json: w"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "graph", "the export process was killed by SIGSEGV in step graph"),
        ("sys.exit(3)", "graph", "the export process ended with 3 in step graph, without a verdict"),
        ("os.rename(f'{folder}/manifest.json', f'{folder}/other.json'); conclude()", "graph", "the export process end"),
        ("print('{\"verdict\"')\nbegin('golden'); os.abort()", "golden", "the export process was killed by SIGABRT"),
        (
            "hash_of = lambda path, real=hash_of: '0' * 64 if 'manifest' in path else real(path)",
            "verify",
            "manifest.json: expected the one that was verified, got another",
        ),
        (
            "hash_of = lambda path, real=hash_of: '0' * 64 if 'config' in path else real(path)",
            "verify",
            "files: expected a bundle of those that were asked for, got another",
        ),
    ],
    ids=["refused", "signal", "exit", "no manifest", "abort", "other manifest", "other files"],
)
def test_a_build_that_fails_leaves_its_reason_and_no_bundle(jobs, model, ask, config, step, reason):
    outcome = jobs.outcome(ask(config))
    assert (outcome["state"], outcome["step"]) == ("failed", step)
    assert outcome["reason"].startswith(reason)
    assert not model.exists()


def test_a_failed_verification_keeps_its_report(jobs, ask):
    verdict = "conclude('failed', step='verify', reason='it differs', report='by so much'); sys.exit()"
    assert jobs.outcome(ask(verdict))["report"] == "by so much"


def test_a_worker_survives_what_it_meets(jobs, ask):
    bad = ask("os.kill(os.getpid(), signal.SIGKILL)")
    good = ask()
    assert jobs.outcome(bad)["state"] == "failed"
    assert jobs.outcome(good)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"format": 0}, "format: this release runs jobs of format 1, got 0; ask for it again"),
        ({"format": 1, "model": "m"}, "checkpoint: missing"),
        ([], "format: this release runs jobs of format 1, got None"),
        ({"format": 1, "checkpoint": "a", "files": {}, "model": "../m", "version": 1}, "model: expected letters"),
    ],
    ids=["old", "incomplete", "list", "hostile"],
)
def test_what_is_no_order_fails_by_name(jobs, model, document, reason):
    outcome = jobs.outcome(jobs.add_document(document))
    assert (outcome["state"], outcome["step"]) == ("failed", "fetch")
    assert outcome["reason"].startswith(reason)
    assert not model.exists()


def test_a_job_whose_name_leads_elsewhere_is_none(jobs, places):
    precious = places.checkpoints.parent / "precious"
    precious.mkdir()
    outcome = jobs.outcome(jobs.add_document({"format": 1}, job="../../precious"))
    assert outcome["reason"].startswith("id: expected at most 64 letters")
    assert precious.exists()


def test_a_version_that_is_there_is_a_conflict_before_any_work(jobs, model, ask):
    make_version(model, 1)
    job = ask()
    outcome = jobs.outcome(job)
    assert (outcome["state"], outcome["step"]) == ("failed", "fetch")
    expected = f"destination: {model.name}/1 exists; versions are never overwritten, choose the next number"
    assert outcome["reason"] == expected
    assert (model / "1/manifest.json").read_text() == "1 by hand"


def test_of_two_that_race_for_a_version_one_fails(jobs, model, ask):
    publishes = "place = os.path.dirname(folder) + '/1'; os.mkdir(place); open(place + '/manifest.json', 'w').close()"
    job = ask(publishes)
    outcome = jobs.outcome(job)
    assert (outcome["state"], outcome["step"]) == ("failed", "publish")
    assert outcome["reason"].startswith(f"destination: {model.name}/1 exists")
    # It was proven all the same.
    assert outcome["parity"]["table"] == "a table"
    assert os.listdir(model) == ["1"]
    assert (model / "1/manifest.json").read_text() == ""


def test_a_cancelled_job_is_let_go_of_with_its_process(jobs, places, model, ask):
    job = ask("open(f'{work}/pid', 'w').write(str(os.getpid()))\n" + WAITS)
    wait_until(lambda: is_building(model))
    child = int((places.work(job) / "pid").read_text())
    jobs.client.cancel_workflow(job)
    wait_until(lambda: not Path(f"/proc/{child}").exists())
    wait_until(lambda: not model.exists())
    assert jobs.status(job).status == "CANCELLED"
    # It has room for another one.
    assert jobs.outcome(ask())["state"] == "succeeded"


def test_a_job_that_is_cancelled_while_it_waits_never_begins(jobs, places, model, ask):
    first = ask(WAITS)
    wait_until(lambda: is_building(model))
    second = ask(model="never")
    jobs.client.cancel_workflow(second)
    jobs.client.cancel_workflow(first)
    assert jobs.outcome(ask())["state"] == "succeeded"
    assert not (places.repository / "never").exists()


@pytest.mark.parametrize("others", [(), (1, 10)])
def test_a_version_that_is_not_to_be_active_is_not(jobs, model, ask, others):
    for version in others:
        make_version(model, version)
    assert jobs.outcome(ask(version=11, activate=False))["state"] == "succeeded"
    assert (model / "11").is_dir()
    assert active(model) == (10 if others else None)


def test_an_older_version_may_become_the_active_one(jobs, model, ask):
    make_version(model, 10)
    assert jobs.outcome(ask(version=9))["state"] == "succeeded"
    assert active(model) == 9


def test_where_the_newest_is_served_it_goes_on_so(jobs, model, ask):
    make_version(model, 1)
    assert jobs.outcome(ask(version=2))["state"] == "succeeded"
    assert active(model) == 2
    assert not (model / "aliases.json").exists()


def test_aliases_that_cannot_be_read_are_the_jobs_failure_not_the_bundles(jobs, model, ask):
    make_version(model, 1)
    (model / "aliases.json").write_text("{")
    outcome = jobs.outcome(ask(version=2))
    assert (outcome["state"], outcome["step"]) == ("failed", "activate")
    assert outcome["reason"].startswith(f"{model.name}/aliases.json: expected")
    assert (model / "2/manifest.json").exists()
