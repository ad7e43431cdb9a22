"""The catalogue serves what its repository says, whatever happens to it. The engines are the test's."""

import asyncio
import errno
import gc
import json
import logging
import os
import shutil
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attnserve.bundle import BundleError
from attnserve.repository import find_versions
from attnserve.service import model as model_module
from attnserve.service.catalogue import Catalogue
from attnserve.service.cost import Cost
from attnserve.service.job import Job, LogitsAnswer
from attnserve.service.metrics import Metrics
from attnserve.service.observer import NOBODY
from attnserve.service.oip.repository import list_repository
from attnserve.service.problems import Conflict, InternalError, NotFound, Unavailable
from attnserve.service.settings import Settings
from attnserve.sessions import DeviceError

COST = Cost(seconds_per_run=0, seconds_per_row=1, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)


class Panic(BaseException):
    """As errors of Rust libraries are: not an `Exception`."""


class World:
    """A repository that the test changes, and a catalogue that follows it."""

    def __init__(self, folder, manifest):
        self.folder = folder
        self.manifest = manifest
        self.now = 1000.0
        self.loaded = []
        """Model and version of every attempt."""
        self.hooks = {}
        """By model and version: called when it is being loaded."""
        self.num_files = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def add(self, *names):
        for name in names:
            (self.folder / name).mkdir(parents=True)
            self.write(name)

    def write(self, name):
        """Write a manifest, which never looks like the one before."""
        self.num_files += 1
        (self.folder / name / "manifest.json").write_text("x" * self.num_files)

    def alias(self, name, active):
        (self.folder / name / "aliases.json").write_text(json.dumps({"active": active}))

    def make(self, **options):
        limits = Settings(
            tuning=dict.fromkeys(("a", "b", "c"), COST), num_threads=1, tuning_cache="", poll_seconds=0.001
        )
        self.catalogue = Catalogue(self.folder, limits, clock=lambda: self.now, **options)
        return self.catalogue

    @property
    def served(self):
        return {name: model.version for name, model in self.catalogue.models.items()}

    def make_engine(self, folder, *, device, num_threads, cuda):
        """In the place of `Engine`: answers with the version it was loaded from."""
        name, version = folder.parent.name, int(folder.name)
        self.loaded.append((name, version))
        hook = self.hooks.get((name, version))
        if hook is not None:
            hook()

        def run(jobs):
            self.entered.release()
            self.gate.wait()
            if any(99 in job.sequence for job in jobs):
                raise Panic("poisoned")
            return [LogitsAnswer(logits=np.full((1, 1), version, np.float32), captures={}) for _ in jobs]

        return SimpleNamespace(
            manifest=self.manifest,
            device=device,
            provider="CPUExecutionProvider",
            num_threads=num_threads,
            kernels=None,
            gpus=None,
            observer=NOBODY,
            verdict="well",
            run=run,
            shrink=lambda: None,
            forget_graphs=lambda: None,
            is_sound=lambda: self.is_sound,
        )

    is_sound = True


def raising(error):
    def load():
        raise error

    return load


def ask(model, token=1):
    """The version that answers."""
    job = Job(sequence=np.array([token]), positions=np.array([0]))
    (answer,) = asyncio.run(model.batcher.submit([job]))
    return int(answer.logits[0, 0])


@pytest.fixture
def world(tmp_path, monkeypatch, make_manifest):
    world = World(tmp_path / "repository", make_manifest())
    world.add("a/1", "b/1", "c/1")
    monkeypatch.setattr(model_module, "Engine", world.make_engine)
    monkeypatch.setattr(model_module, "free_memory", lambda: 1e9)
    yield world
    world.gate.set()
    world.catalogue.stop()
    world.catalogue.close()


def test_all_is_well(world):
    catalogue = world.make()
    assert not catalogue.is_ready
    assert catalogue.explain_unready() == "models are being loaded"
    catalogue.load()
    assert catalogue.is_ready
    assert catalogue.find("b").name == "b"
    assert catalogue.find("b", 1).version == 1


@pytest.mark.parametrize("error", [BundleError("damaged"), ValueError("shapes"), KeyError("layers"), MemoryError()])
def test_one_that_fails_disturbs_no_other(world, error):
    catalogue = world.make()
    world.hooks["b", 1] = raising(error)
    catalogue.load()
    assert world.served == {"a": 1, "c": 1}
    assert str(error) in catalogue.failures.by_name["b"].reason
    assert catalogue.is_ready
    with pytest.raises(Unavailable, match="b version 1 cannot be served"):
        catalogue.find("b")


def test_where_a_repository_lies_is_nobodys_business(world):
    catalogue = world.make()
    world.hooks["b", 1] = raising(BundleError(f"{world.folder}/b/1/model.onnx: missing"))
    catalogue.load()
    assert catalogue.explain("b") == "version 1 cannot be served: b/1/model.onnx: missing"


def test_none_that_can_be_served_is_not_ready(world):
    catalogue = world.make()
    world.hooks |= {(name, 1): raising(BundleError("damaged")) for name in "abc"}
    catalogue.load()
    assert not catalogue.is_loading
    assert catalogue.explain_unready() == "no model of the repository answers"


def test_a_device_that_is_missing_is_missing_for_all(world):
    catalogue = world.make()
    world.hooks["a", 1] = raising(DeviceError("no GPU"))
    with pytest.raises(DeviceError):
        catalogue.load()
    assert not catalogue.is_ready


def test_a_device_that_is_missing_later_is_one_versions_failure(world):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2", "b/2")
    world.hooks["a", 2] = raising(DeviceError("out of memory"))
    catalogue.refresh()
    assert world.served == {"a": 1, "b": 2, "c": 1}
    assert catalogue.explain("a") == "version 2 cannot be served: out of memory"


def test_loading_can_be_stopped_between_models(world):
    catalogue = world.make()
    world.hooks["a", 1] = catalogue.stop
    catalogue.load()
    assert world.served == {"a": 1}


def test_finding(world):
    catalogue = world.make()
    world.hooks["b", 1] = raising(BundleError("damaged"))
    with pytest.raises(Unavailable, match="a is being loaded"):
        catalogue.find("a")
    with pytest.raises(NotFound, match=r"model: expected one of a, b, c, got 'd'"):
        catalogue.find("d")
    catalogue.load()
    with pytest.raises(NotFound, match=r"version: a serves version 1, got 2"):
        catalogue.find("a", 2)
    catalogue.find("c").batcher.close()
    with pytest.raises(Unavailable, match="c has stopped"):
        catalogue.find("c")


def test_a_large_repository_is_not_listed_in_every_404(world):
    world.add(*(f"model-{number:04}/1" for number in range(300)))
    with pytest.raises(NotFound) as caught:
        world.make().find("x" * 200)
    assert "model-0006 and 293 more, got" in caught.value.detail
    assert len(caught.value.detail) < 300


def test_a_new_version_takes_the_place_of_the_old_one(world):
    catalogue = world.make()
    catalogue.load()
    before = catalogue.find("a")
    world.add("a/2")
    assert ask(catalogue.find("a")) == 1
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 2
    assert ask(before) == 1
    assert catalogue.versions["a"] == (1, 2)
    # Nothing else is loaded a second time, nor anything when nothing has changed.
    catalogue.refresh()
    assert world.loaded == [("a", 1), ("b", 1), ("c", 1), ("a", 2)]


def test_an_alias_leads_back_to_an_older_version(world):
    world.add("a/2")
    catalogue = world.make()
    catalogue.load()
    assert world.served["a"] == 2
    world.alias("a", 1)
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 1
    world.alias("a", 2)
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 2


def test_a_broken_version_never_displaces_one_that_answers(world, caplog):
    catalogue = world.make()
    catalogue.load()
    before = catalogue.find("a")
    world.add("a/2", "b/2")
    world.hooks["a", 2] = raising(BundleError("damaged"))
    catalogue.refresh()
    assert catalogue.find("a") is before
    assert catalogue.explain("a") == "version 2 cannot be served: damaged"
    assert world.served["b"] == 2
    assert "a version 2 cannot be served: damaged; version 1 goes on" in caplog.text


def test_what_is_broken_is_tried_again_after_growing_delays(world, caplog):
    catalogue = world.make()
    world.hooks["a", 1] = raising(BundleError("damaged"))
    catalogue.load()
    tried_at, begin = [], world.now
    for _ in range(200):
        world.now += 1
        before = len(world.loaded)
        catalogue.refresh()
        tried_at += [world.now - begin] * (len(world.loaded) - before)
    assert tried_at == [10, 30, 70, 150]
    # Once, not five times.
    assert caplog.text.count("cannot be served") == 1
    del world.hooks["a", 1]
    world.now += 200
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 1
    assert catalogue.failures.by_name == {}


def test_what_is_mended_is_tried_at_once(world):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2")
    world.hooks["a", 2] = raising(BundleError("damaged"))
    catalogue.refresh()
    world.write("a/2")
    catalogue.refresh()
    assert world.loaded[-2:] == [("a", 2), ("a", 2)]
    world.write("a/2")
    del world.hooks["a", 2]
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 2
    assert catalogue.failures.by_name == {}


def test_a_newer_version_is_not_held_up_by_a_broken_one(world):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2")
    world.hooks["a", 2] = raising(BundleError("damaged"))
    catalogue.refresh()
    world.add("a/3")
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 3
    assert catalogue.failures.by_name == {}


@pytest.mark.parametrize("aliases", ["{", '{"active": 7}'])
def test_aliases_that_are_wrong_change_nothing(world, aliases):
    catalogue = world.make()
    catalogue.load()
    (world.folder / "a" / "aliases.json").write_text(aliases)
    world.add("b/2")
    # Every two seconds for an hour.
    for _ in range(1800):
        catalogue.refresh()
    assert world.served == {"a": 1, "b": 2, "c": 1}
    assert "a/aliases.json" in catalogue.explain("a")
    world.alias("a", 1)
    catalogue.refresh()
    assert catalogue.failures.by_name == {}
    assert world.loaded.count(("a", 1)) == 1


def test_an_alias_of_null_is_unloaded(world):
    catalogue = world.make()
    catalogue.load()
    world.alias("a", None)
    catalogue.refresh()
    with pytest.raises(Unavailable, match="a is unloaded"):
        catalogue.find("a")
    assert catalogue.is_ready
    world.add("a/2")
    catalogue.refresh()
    assert "a" not in world.served
    world.alias("a", 2)
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 2


def test_a_folder_that_is_gone_is_a_model_that_is_gone(world):
    catalogue = world.make()
    catalogue.load()
    shutil.rmtree(world.folder / "a")
    catalogue.refresh()
    with pytest.raises(NotFound, match="expected one of b, c, got 'a'"):
        catalogue.find("a")
    world.add("a/3")
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 3


def test_the_served_version_may_be_deleted(world):
    world.add("a/2")
    catalogue = world.make()
    catalogue.load()
    shutil.rmtree(world.folder / "a" / "2")
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 1


def test_a_repository_that_vanishes_takes_nothing_with_it(world, caplog):
    catalogue = world.make()
    catalogue.load()
    elsewhere = world.folder.with_name("elsewhere")
    world.folder.rename(elsewhere)
    world.folder.mkdir()
    for _ in range(5):
        catalogue.refresh()
    assert world.served == {"a": 1, "b": 1, "c": 1}
    assert caplog.text.count("holds no bundles any more; what is loaded is kept") == 1
    world.folder.rmdir()
    elsewhere.rename(world.folder)
    world.add("a/2")
    catalogue.refresh()
    assert world.served == {"a": 2, "b": 1, "c": 1}


def test_a_repository_that_cannot_be_read_takes_nothing_with_it(world, monkeypatch, caplog):
    def refuse(folder):
        raise OSError(errno.ESTALE, "Stale file handle")

    catalogue = world.make()
    catalogue.load()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refuse)
        for _ in range(5):
            catalogue.refresh()
        with pytest.raises(Conflict, match=r"^the repository cannot be read: Stale file handle$"):
            catalogue.activate("a", 1)
        assert world.served == {"a": 1, "b": 1, "c": 1}
        assert catalogue.versions == {"a": (1,), "b": (1,), "c": (1,)}
    assert caplog.text.count("the repository cannot be read: Stale file handle; what is loaded is kept") == 1
    assert "Traceback" not in caplog.text
    world.add("a/2")
    catalogue.refresh()
    assert world.served == {"a": 2, "b": 1, "c": 1}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_model_that_cannot_be_read_is_that_models_affair(world, make_unreadable, caplog, number):
    world.add("a/2")
    catalogue = world.make()
    catalogue.load()
    make_unreadable(world.folder / "a", number)
    make_unreadable(world.folder / "d", number)
    world.add("b/2")
    (world.folder / "d").mkdir()
    for _ in range(3):
        catalogue.refresh()
    # What is loaded stays, and others are followed.
    assert world.served == {"a": 2, "b": 2, "c": 1}
    assert catalogue.is_ready
    assert catalogue.versions == {"a": (1, 2), "b": (1, 2), "c": (1,), "d": ()}
    reason = f"cannot be served: a: cannot be read: {os.strerror(number)}"
    assert catalogue.explain("a") == reason
    assert caplog.text.count(f"a {reason}; version 2 goes on") == 1
    rows = {(row["name"], row.get("version")): row for row in list_repository(catalogue, only_ready=False)}
    assert (rows["a", "2"]["state"], rows["a", "2"]["reason"]) == ("READY", reason)
    assert (rows["d", None]["state"], rows["d", None]["reason"]) == ("UNAVAILABLE", reason.replace("a:", "d:"))
    assert rows["b", "2"]["reason"] == ""
    assert {name for name, _ in rows if name == "d"} == {"d"}
    assert {row["name"] for row in list_repository(catalogue, only_ready=True)} == {"a", "b", "c"}
    metrics = Metrics()
    metrics.show_models(catalogue)
    for model, failed, ready in (("a", 1.0, 1.0), ("b", 0.0, 1.0), ("d", 1.0, 0.0)):
        for name, value in (("failed", failed), ("ready", ready)):
            assert metrics.registry.get_sample_value(f"model_{name}", {"model": model}) == value
    with pytest.raises(Unavailable, match="d cannot be served: d: cannot be read"):
        catalogue.find("d")
    for name in "ad":
        with pytest.raises(Conflict, match=f"^{name}: cannot be read"):
            catalogue.activate(name, 1)
        with pytest.raises(Conflict, match=f"{name}/aliases.json: cannot be read"):
            catalogue.deactivate(name)


def test_a_model_that_could_not_be_read_at_the_start_is_served_as_soon_as_it_can_be(world, monkeypatch):
    def refuse(folder):
        if folder.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return find_versions(folder)

    with monkeypatch.context() as patched:
        patched.setattr("attnserve.repository.find_versions", refuse)
        catalogue = world.make()
        catalogue.load()
        assert world.served == {"b": 1, "c": 1}
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 1
    assert catalogue.failures.by_name == {}


def test_a_version_that_cannot_be_read_displaces_nothing(world, make_unreadable, caplog):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2", "b/2")
    make_unreadable(world.folder / "a" / "2", errno.EACCES)
    world.hooks["a", 2] = (world.folder / "a" / "2" / "manifest.json").stat
    catalogue.refresh()
    assert world.served == {"a": 1, "b": 2, "c": 1}
    assert catalogue.explain("a") == "version 2 cannot be served: [Errno 13] Permission denied: 'a/2/manifest.json'"
    assert not any("unknown way" in message for message in caplog.messages)


def test_a_model_that_has_stopped_is_loaded_again(world):
    catalogue = world.make()
    catalogue.load()
    catalogue.find("a").batcher.close()
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 1
    assert world.loaded.count(("a", 1)) == 2


def test_links_are_refused_and_disturb_no_other(world, tmp_path):
    (tmp_path / "outside" / "1").mkdir(parents=True)
    (tmp_path / "outside" / "1" / "manifest.json").write_text("secret")
    targets = {"outside": tmp_path / "outside", "inside": "b", "loop": "loop", "nowhere": "nothing"}
    for name, target in targets.items():
        (world.folder / name).symlink_to(target)
    (world.folder / "a" / "2").symlink_to(tmp_path / "outside" / "1")
    (world.folder / "b" / "2").symlink_to("2")
    catalogue = world.make()
    catalogue.load()
    assert world.served == {"b": 1, "c": 1}
    for name, link in {"outside": "outside", "inside": "inside", "a": "a/2"}.items():
        with pytest.raises(Unavailable, match=f"{link}: expected a folder of the repository, got a link"):
            catalogue.find(name)
    assert [name for name, _ in world.loaded] == ["b", "c"]


def test_no_memory_for_a_second_version(world, monkeypatch):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2")
    monkeypatch.setattr(model_module, "free_memory", lambda: 1)
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 1
    assert "a/2: loading it takes about" in catalogue.explain("a")
    assert world.loaded.count(("a", 2)) == 0
    monkeypatch.setattr(model_module, "free_memory", lambda: 1e9)
    world.now += 10
    catalogue.refresh()
    assert ask(catalogue.find("a")) == 2


def watch(catalogue):
    thread = threading.Thread(target=catalogue.watch)
    thread.start()
    return thread


def until(condition):
    """Wait for another thread."""
    waiting = threading.Event()
    for _ in range(4000):
        if condition():
            return
        waiting.wait(0.005)
    pytest.fail("it did not happen")


def test_watching_outlives_an_error_that_nobody_expected(world, monkeypatch, caplog):
    catalogue = world.make()
    catalogue.load()
    with monkeypatch.context() as patched:
        patched.setattr(catalogue.repository, "find_models", raising(ZeroDivisionError()))
        thread = watch(catalogue)
        try:
            until(lambda: caplog.text.count("the repository cannot be followed") > 1)
            patched.undo()
            world.add("a/2")
            until(lambda: world.served["a"] == 2)
        finally:
            catalogue.stop()
            thread.join()


def test_watching_ends_when_told(world):
    catalogue = world.make()
    catalogue.load()
    thread = watch(catalogue)
    catalogue.stop()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_no_polling_when_it_is_off(world):
    catalogue = world.make()
    catalogue.settings = Settings(poll_seconds=0)
    catalogue.load()
    world.add("a/2")
    catalogue.watch()
    assert world.served["a"] == 1


def test_the_old_model_is_freed_and_its_worker_ends(world):
    catalogue = world.make()
    others = set(threading.enumerate())
    catalogue.load()
    old = weakref.ref(catalogue.find("a"))
    (worker,) = (thread for thread in set(threading.enumerate()) - others if thread.name == "engine-a-0")
    world.add("a/2")
    gc.disable()
    try:
        catalogue.refresh()
        # Now, not when Python next looks for cycles: two models may be all the memory there is.
        assert old() is None
    finally:
        gc.enable()
    worker.join(timeout=20)
    assert not worker.is_alive()
    assert ask(catalogue.find("a")) == 2


def test_who_began_with_the_old_version_is_answered_by_it(world):
    catalogue = world.make()
    catalogue.load()
    world.gate.clear()

    async def talk():
        # As the routes do: a request holds its model until it is answered.
        async def request(model):
            job = Job(sequence=np.array([1]), positions=np.array([0]))
            return int((await model.batcher.submit([job]))[0].logits[0, 0])

        before = [asyncio.create_task(request(catalogue.find("a"))) for _ in range(5)]
        await asyncio.to_thread(world.entered.acquire)
        world.add("a/2")
        await asyncio.to_thread(catalogue.refresh)
        after = [asyncio.create_task(request(catalogue.find("a"))) for _ in range(5)]
        gc.collect()
        world.gate.set()
        return await asyncio.gather(*before), await asyncio.gather(*after)

    assert asyncio.run(talk()) == ([1] * 5, [2] * 5)


def test_a_device_that_is_lost(world):
    told = []
    catalogue = world.make(on_lost=lambda: told.append(True))
    catalogue.load()
    world.is_sound = False
    with pytest.raises(Unavailable, match="the device is lost"):
        ask(catalogue.find("a"), 99)
    assert told == [True]
    assert catalogue.explain_unready() == "the device is lost"
    # Nothing is loaded on it any more.
    before = len(world.loaded)
    catalogue.refresh()
    assert len(world.loaded) == before


def test_one_that_panics_alone_is_no_lost_device(world):
    catalogue = world.make()
    catalogue.load()
    with pytest.raises(InternalError):
        ask(catalogue.find("a"), 99)
    assert catalogue.is_ready
    assert ask(catalogue.find("a")) == 1


# What clients may ask for.


def aliases_of(world, name):
    return json.loads((world.folder / name / "aliases.json").read_text())


def test_activate_serves_and_writes(world):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2", "a/10")
    assert ask(catalogue.activate("a", 2)) == 2
    assert aliases_of(world, "a") == {"active": 2}
    assert ask(catalogue.activate("a")) == ask(catalogue.find("a")) == 10
    assert aliases_of(world, "a") == {"active": 10}
    assert ask(catalogue.activate("a", 1)) == 1
    catalogue.refresh()
    assert world.served["a"] == 1


def test_activating_what_is_served_loads_nothing(world):
    catalogue = world.make()
    catalogue.load()
    served = catalogue.find("a")
    assert catalogue.activate("a") is served
    assert catalogue.activate("a", 1) is served
    assert world.loaded.count(("a", 1)) == 1
    # But holds it when a newer one appears.
    world.add("a/2")
    catalogue.refresh()
    assert catalogue.find("a") is served


def test_activate_what_is_not_there(world):
    catalogue = world.make()
    catalogue.load()
    with pytest.raises(NotFound, match="model: expected one of a, b, c, got 'd'"):
        catalogue.activate("d")
    with pytest.raises(NotFound, match=r"version: expected one of \[1\], got 2"):
        catalogue.activate("a", 2)
    assert not (world.folder / "a" / "aliases.json").exists()


def test_activate_what_is_broken(world):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2")
    world.hooks["a", 2] = raising(BundleError("damaged"))
    for _ in range(2):
        with pytest.raises(Conflict, match="a version 2 cannot be served: damaged"):
            catalogue.activate("a", 2)
    # Who asks is answered by a new attempt, not by what was known.
    assert world.loaded.count(("a", 2)) == 2
    assert ask(catalogue.find("a")) == 1
    assert not (world.folder / "a" / "aliases.json").exists()


def test_activate_in_a_repository_that_cannot_be_written(world, monkeypatch):
    catalogue = world.make()
    catalogue.load()
    world.add("a/2")
    monkeypatch.setattr(
        catalogue.repository, "activate", lambda *_: raising(BundleError(f"{world.folder}/a/aliases.json: no"))()
    )
    with pytest.raises(Conflict, match=r"^a/aliases\.json: no$"):
        catalogue.activate("a", 2)
    with pytest.raises(Conflict, match=r"^a/aliases\.json: no$"):
        catalogue.deactivate("a")
    assert ask(catalogue.find("a")) == 1


def test_deactivate(world):
    catalogue = world.make()
    catalogue.load()
    catalogue.deactivate("a")
    with pytest.raises(Unavailable, match="a is unloaded"):
        catalogue.find("a")
    assert aliases_of(world, "a") == {"active": None}
    catalogue.refresh()
    assert world.served == {"b": 1, "c": 1}
    with pytest.raises(NotFound):
        catalogue.deactivate("d")
    catalogue.deactivate("a")
    assert ask(catalogue.activate("a")) == 1


def test_deactivated_while_its_answer_is_computed(world):
    catalogue = world.make()
    catalogue.load()
    world.gate.clear()

    async def talk():
        job = Job(sequence=np.array([1]), positions=np.array([0]))
        asked = asyncio.create_task(catalogue.find("a").batcher.submit([job] * 3))
        await asyncio.to_thread(world.entered.acquire)
        await asyncio.to_thread(catalogue.deactivate, "a")
        gc.collect()
        world.gate.set()
        return len(await asked)

    assert asyncio.run(talk()) == 3


def test_a_real_model(copy_bundle, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for version in (1, 2):
        copy_bundle(tmp_path / "tiny" / str(version))
    (tmp_path / "tiny" / "aliases.json").write_text('{"active": 1}')
    limits = Settings(tuning_seconds=0.1, num_threads=1, device="cpu", tuning_cache=str(tmp_path / "costs"))
    catalogue = Catalogue(tmp_path, limits)
    catalogue.load()
    try:
        assert catalogue.failures.by_name == {}
        assert catalogue.find("tiny").version == 1
        assert catalogue.find("tiny").tuning.source == "measured"
        assert catalogue.activate("tiny").version == 2
        # Of one shape with the other.
        assert catalogue.find("tiny").tuning.source == "remembered"
        model = tmp_path / "tiny" / "1" / "model.onnx"
        model.write_bytes(model.read_bytes()[:-1])
        with pytest.raises(Conflict, match=r"tiny/1/model\.onnx"):
            catalogue.activate("tiny", 1)
        assert catalogue.find("tiny").version == 2
    finally:
        catalogue.close()
    assert not catalogue.is_ready
    assert "tiny/2 answers on cpu" in caplog.text
