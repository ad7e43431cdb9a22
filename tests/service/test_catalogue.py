"""Which models a repository holds, which version is served, and what the machine has to give."""

import json
from types import SimpleNamespace

import pytest

from attnserve.bundle import BundleError
from attnserve.runtime import DeviceError
from attnserve.service import catalogue as module
from attnserve.service.catalogue import (
    Catalogue,
    ServedModel,
    check_answerable,
    choose_version,
    count_cores,
    find_models,
    find_versions,
    memory_limit,
)
from attnserve.service.problems import NotFound, Unavailable
from attnserve.service.settings import Settings


def add(repository, *names):
    for name in names:
        folder = repository / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")


def test_models_and_versions(tmp_path):
    add(tmp_path, "b/1", "a/2", "a/10", "a/.tmp-1", "a/01", "a/0", "a/x", ".hidden/1", "-dash/1", "empty/none")
    (tmp_path / "file").write_text("")
    (tmp_path / "a" / "3").mkdir()
    assert find_models(tmp_path) == ["a", "b"]
    assert find_versions(tmp_path / "a") == [2, 10]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 10),
        ('{"active": 2}', 2),
        ('{"active": 10, "stable": 2}', 10),
        ('{"active": 3}', "active: expected one of [2, 10], got 3"),
        ('{"active": true}', "got True"),
        ('{"active": 2.0}', "got 2.0"),
        ('{"active": "2"}', "got '2'"),
        ('{"active": null}', "got None"),
        ('{"active": [2]}', "got [2]"),
        ("{}", 'expected {"active": version}'),
        ("[]", 'expected {"active": version}'),
        ("{", 'expected {"active": version}'),
        ("[" * 10**5, 'expected {"active": version}'),
        ("\ud800", 'expected {"active": version}'),
        ("9" * 5000, 'expected {"active": version}'),
    ],
)
def test_version(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "aliases.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    if isinstance(expected, int):
        assert choose_version(tmp_path, [2, 10]) == expected
        return
    with pytest.raises(BundleError) as caught:
        choose_version(tmp_path, [2, 10])
    assert expected in str(caught.value)
    assert str(tmp_path / "aliases.json") in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"card": {"number": 2**64}}, "cannot be written as JSON"),
        ({"card": {"text": "\ud800"}}, "cannot be written as JSON"),
    ],
)
def test_what_only_an_answer_would_stumble_over(make_manifest, fields, message):
    check_answerable(make_manifest())
    check_answerable(make_manifest(labels=tuple("abcdefghij"), card={"any": [None, 1.5, "thing"]}))
    with pytest.raises(BundleError, match=message):
        check_answerable(make_manifest(**fields))


@pytest.fixture
def make_catalogue(tmp_path, monkeypatch):
    """A catalogue of a, b and c; `loaders` say what loading each does instead."""

    def make(**loaders):
        add(tmp_path, "a/1", "b/1", "c/1")
        catalogue = Catalogue(tmp_path, Settings())

        def load(name):
            loader = loaders.get(name)
            if loader is not None:
                loader(catalogue)
            batcher = SimpleNamespace(is_open=True, close=lambda: None)
            return ServedModel(name=name, version=1, versions=(1,), engine=None, batcher=batcher, reader=None)

        monkeypatch.setattr(catalogue, "_load_model", load)
        return catalogue

    return make


def raising(error):
    def load(_):
        raise error

    return load


def test_all_is_well(make_catalogue):
    catalogue = make_catalogue()
    assert not catalogue.is_ready
    catalogue.load()
    assert catalogue.is_ready
    assert catalogue.find("b").name == "b"
    assert catalogue.find("b", 1).version == 1


@pytest.mark.parametrize("error", [BundleError("damaged"), ValueError("shapes"), KeyError("layers"), MemoryError()])
def test_one_that_fails_disturbs_no_other(make_catalogue, error):
    catalogue = make_catalogue(b=raising(error))
    catalogue.load()
    assert sorted(catalogue.models) == ["a", "c"]
    assert str(error) in catalogue.failures["b"]
    assert catalogue.is_ready
    with pytest.raises(Unavailable, match="b cannot be served"):
        catalogue.find("b")


def test_where_a_repository_lies_is_nobodys_business(make_catalogue, tmp_path):
    catalogue = make_catalogue(b=raising(BundleError(f"{tmp_path}/b/1/model.onnx: missing")))
    catalogue.load()
    assert catalogue.explain("b") == "cannot be served: b/1/model.onnx: missing"


def test_none_that_can_be_served_is_not_ready(make_catalogue):
    catalogue = make_catalogue(**dict.fromkeys("abc", raising(BundleError("damaged"))))
    catalogue.load()
    assert not catalogue.is_loading
    assert not catalogue.is_ready


def test_a_device_that_is_missing_is_missing_for_all(make_catalogue):
    catalogue = make_catalogue(a=raising(DeviceError("no GPU")))
    with pytest.raises(DeviceError):
        catalogue.load()
    assert not catalogue.is_ready


def test_loading_can_be_stopped_between_models(make_catalogue):
    catalogue = make_catalogue(a=lambda catalogue: catalogue.stop_loading())
    catalogue.load()
    assert sorted(catalogue.models) == ["a"]


def test_finding(make_catalogue):
    catalogue = make_catalogue(b=raising(BundleError("damaged")))
    with pytest.raises(Unavailable, match="a is being loaded"):
        catalogue.find("a")
    with pytest.raises(NotFound, match=r"model: expected one of a, b, c, got 'd'"):
        catalogue.find("d")
    catalogue.load()
    with pytest.raises(NotFound, match=r"version: a serves version 1, got 2"):
        catalogue.find("a", 2)
    catalogue.models["c"].batcher.is_open = False
    with pytest.raises(Unavailable, match="c has stopped"):
        catalogue.find("c")


def test_a_large_repository_is_not_listed_in_every_404(tmp_path):
    add(tmp_path, *(f"model-{number:04}/1" for number in range(300)))
    with pytest.raises(NotFound) as caught:
        Catalogue(tmp_path, Settings()).find("x" * 200)
    assert "model-0009 and 290 more, got" in caught.value.detail
    assert len(caught.value.detail) < 300


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("nothing", "file"):
        with pytest.raises(BundleError, match="repository: expected a folder of bundles"):
            Catalogue(tmp_path / place, Settings())


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cores_within_the_quota(monkeypatch, files, cores):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(module, "_read_cgroup", lambda *paths: next(filter(None, map(files.get, paths)), None))
    assert count_cores() == cores


@pytest.mark.parametrize("text", [None, "max", "9223372036854771712"])
def test_memory_without_a_limit_is_the_machines(monkeypatch, text):
    monkeypatch.setattr(module, "_read_cgroup", lambda *_: text)
    monkeypatch.setattr(module.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert memory_limit() == 4_096_000


def test_memory_within_the_limit(monkeypatch):
    monkeypatch.setattr(module, "_read_cgroup", lambda *_: "1000000")
    assert memory_limit() == 1_000_000


def test_a_real_model(copy_bundle, tmp_path):
    copy_bundle(tmp_path / "tiny" / "1")
    copy_bundle(tmp_path / "tiny" / "2")
    (tmp_path / "tiny" / "aliases.json").write_text(json.dumps({"active": 1}))
    catalogue = Catalogue(tmp_path, Settings(tuning_seconds=0.1, num_threads=1, device="cpu"))
    catalogue.load()
    try:
        assert catalogue.failures == {}
        assert (catalogue.find("tiny").version, catalogue.find("tiny").versions) == (1, (1, 2))
    finally:
        catalogue.close()
    assert not catalogue.is_ready


@pytest.mark.parametrize("inside", ["tiny", "tiny/1"])
def test_a_folder_below_the_repository_is_refused_with_the_right_one(bundles, inside):
    with pytest.raises(BundleError, match="expected the folder above MODEL/VERSION"):
        Catalogue(bundles / inside, Settings())
