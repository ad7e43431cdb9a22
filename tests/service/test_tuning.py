"""What batches cost is measured once, and remembered for models of the same shape on the same machine."""

import dataclasses
import json
import threading
import time

import pytest

from attnserve.service import tuning
from attnserve.service.cost import Cost
from attnserve.service.crossover import Crossover
from attnserve.service.devices import Gpus
from attnserve.service.tuning import Tuner, choose_clock

COST = Cost(seconds_per_run=1e-3, seconds_per_row=1e-6, seconds_per_cell=1e-9, bytes_per_row=100, bytes_per_cell=4)


class Engine:
    """Costs what it says, by the clock of the test."""

    def __init__(self, manifest, *, device="cpu", num_threads=1, kernels=None, gpus=None):
        self.manifest, self.device, self.num_threads, self.kernels = manifest, device, num_threads, kernels
        self.gpus = gpus
        self.num_runs = 0

    def run_lengths(self, lengths):
        self.num_runs += 1
        begin = time.thread_time()
        while time.thread_time() - begin < 2e-5:
            pass


@pytest.fixture
def make_engine(make_manifest):
    def make(engine=(), **fields):
        return Engine(make_manifest(**fields), **dict(engine))

    return make


def tune(folder, engine, **options):
    tuner = Tuner(max_seconds=0.05, folder=folder, **options)
    return tuner.tune("tiny", engine, 2, is_idle=True)


def files(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def test_measured_then_remembered(tmp_path, make_engine):
    folder = tmp_path / "not" / "there"
    first, second = make_engine(), make_engine()
    measured = tune(folder, first)
    assert (measured.source, measured.num_engines, measured.num_threads) == ("measured", 2, 1)
    assert first.num_runs > 1
    remembered = tune(folder, second)
    assert (remembered.source, remembered.cost, second.num_runs) == ("remembered", measured.cost, 0)
    (path,) = files(folder)
    assert path.suffix == ".json"


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 99},
        {"vocabulary_size": 11, "layers": ()},
        {"engine": {"num_threads": 2}},
        {"engine": {"device": "cuda"}},
        {"engine": {"gpus": Gpus(devices=(0,), graphs="on", tf32="off")}},
        {"engine": {"gpus": Gpus(devices=(0,), graphs="off", tf32="on")}},
        {"portable": True},
    ],
)
def test_another_setting_is_measured_anew(tmp_path, make_engine, make_manifest, change):
    tune(tmp_path, make_engine())
    if "layers" in change:
        # One layer of the two.
        change = {"layers": make_manifest().layers[:1]}
    other = make_engine(**change)
    assert tune(tmp_path, other).source == "measured"
    assert len(files(tmp_path)) == 2
    assert tune(tmp_path, make_engine()).source == tune(tmp_path, make_engine(**change)).source == "remembered"


def test_another_gpu_is_measured_anew_and_a_second_one_is_not(tmp_path, make_engine, monkeypatch):
    def tune_on(*devices):
        return tune(tmp_path, make_engine(engine={"gpus": Gpus(devices=devices, graphs="off", tf32="off")})).source

    monkeypatch.setattr(tuning, "name_gpu", lambda: "NVIDIA A")
    assert [tune_on(0), tune_on(0, 1), tune_on(1)] == ["measured", "remembered", "remembered"]
    monkeypatch.setattr(tuning, "name_gpu", lambda: "NVIDIA B")
    assert tune_on(0) == "measured"


@pytest.mark.parametrize("change", ["release", "processor", "onnxruntime"])
def test_another_machine_or_release_is_measured_anew(tmp_path, make_engine, monkeypatch, change):
    tune(tmp_path, make_engine())
    match change:
        case "release":
            monkeypatch.setattr(tuning, "__version__", "99.0")
        case "processor":
            monkeypatch.setattr(tuning, "name_processor", lambda: "Z80")
        case "onnxruntime":
            monkeypatch.setattr("onnxruntime.__version__", "99.0")
    assert tune(tmp_path, make_engine()).source == "measured"


def test_kernels_are_another_setting_and_so_is_another_library(tmp_path, make_engine):
    library, costs = tmp_path / "kernels.so", tmp_path / "costs"
    library.write_bytes(b"first")
    assert tune(costs, make_engine()).cost.pads
    measured = tune(costs, make_engine({"kernels": library}))
    assert (measured.source, measured.cost.pads) == ("measured", False)
    assert tune(costs, make_engine({"kernels": library})) == dataclasses.replace(measured, source="remembered")
    library.write_bytes(b"second")
    assert tune(costs, make_engine({"kernels": library})).source == "measured"
    assert tune(costs, make_engine()).source == "remembered"


def test_other_weights_of_one_shape_are_no_other_setting(tmp_path, make_engine):
    tune(tmp_path, make_engine())
    other = make_engine(card={"trained": "for longer"}, labels=tuple("abcdefghij"), files={"model.onnx": "0" * 64})
    assert tune(tmp_path, other).source == "remembered"


def test_what_is_given_is_neither_measured_nor_remembered(tmp_path, make_engine):
    tune(tmp_path / "costs", make_engine())
    engine = make_engine(max_length=50)
    given = tune(tmp_path / "costs", engine, given={"tiny": COST, "other": COST})
    assert (given.source, given.cost, engine.num_runs) == ("given", COST, 0)
    assert len(files(tmp_path / "costs")) == 1
    assert tune(None, make_engine(), given={"other": COST}).source == "measured"


def test_nowhere_to_remember(make_engine):
    assert [tune(None, make_engine()).source for _ in range(2)] == ["measured"] * 2


def spoil(**fields):
    def edit(document):
        document["cost"] |= fields
        return json.dumps(document)

    return edit


@pytest.mark.parametrize(
    ("edit", "is_warned"),
    [
        (lambda _: "", True),
        (lambda _: "{", True),
        (lambda _: "[]", True),
        (lambda _: "null", True),
        (lambda _: "{}", True),
        (lambda _: "[" * 60_000, True),
        (lambda _: " " * 1_000_000, True),
        (lambda _: "9" * 50_000, True),
        (lambda _: "\ud800", True),
        (lambda document: json.dumps({**document, "cost": None}), True),
        (lambda document: json.dumps({**document, "cost": []}), True),
        (lambda document: json.dumps({**document, "of": {}}), False),
        (lambda document: json.dumps({**document, "of": None}), False),
        (spoil(more=1), True),
        (spoil(seconds_per_run="soon"), True),
        (spoil(seconds_per_run=None), True),
        (spoil(seconds_per_run=True), True),
        (spoil(seconds_per_row=-1e-9), True),
        (spoil(seconds_per_cell=float("nan")), True),
        (spoil(bytes_per_row=float("inf")), True),
        (spoil(bytes_per_cell=10**400), True),
    ],
)
def test_a_file_that_is_no_cost_is_measured_again(tmp_path, make_engine, caplog, edit, is_warned):
    tune(tmp_path, make_engine())
    (path,) = files(tmp_path)
    path.write_bytes(edit(json.loads(path.read_text())).encode("utf-8", "surrogatepass"))
    assert tune(tmp_path, make_engine()).source == "measured"
    assert ("is no cost, and is measured again" in caplog.text) == is_warned
    assert len(caplog.text) < 2000
    # And mended.
    assert tune(tmp_path, make_engine()).source == "remembered"
    assert files(tmp_path) == [path]


def test_a_folder_in_the_place_of_the_file(tmp_path, make_engine):
    tune(tmp_path, make_engine())
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    assert tune(tmp_path, make_engine()).source == "measured"
    assert files(tmp_path) == [path]


@pytest.mark.parametrize("place", ["file/costs", "/proc/costs"])
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, make_engine, monkeypatch, place):
    (tmp_path / "file").touch()
    assert tune(tmp_path / place, make_engine()).source == "measured"


def test_a_full_disk_leaves_nothing_behind(tmp_path, make_engine, monkeypatch):
    def fail(path, *_):
        path.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    assert tune(tmp_path, make_engine()).source == "measured"
    assert files(tmp_path) == []


def test_several_services_at_once(tmp_path, make_engine):
    sources, problems = [], []

    def start():
        try:
            sources.append(tune(tmp_path, make_engine()).source)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert set(sources) <= {"measured", "remembered"}
    assert len(sources) == 8
    assert len(files(tmp_path)) == 1
    assert tune(tmp_path, make_engine()).source == "remembered"


@pytest.mark.parametrize(
    ("device", "num_threads", "is_idle", "clock"),
    [
        ("cpu", 1, False, time.thread_time),
        ("cpu", 4, True, time.process_time),
        # What other models compute is time of the process too.
        ("cpu", 4, False, time.perf_counter),
        ("cuda", 1, True, time.perf_counter),
    ],
)
def test_clocks(make_manifest, device, num_threads, is_idle, clock):
    engine = Engine(make_manifest(), device=device, num_threads=num_threads)
    assert choose_clock(engine, is_idle=is_idle) is clock


def test_costs_are_whole_again(tmp_path, make_engine):
    measured = tune(tmp_path, make_engine()).cost
    assert dataclasses.astuple(tune(tmp_path, make_engine()).cost) == dataclasses.astuple(measured)


def cross(folder, engine, found, max_bytes=1000):
    """What is known of where GPUs win, and how often that was measured."""
    measured = []

    def measure():
        measured.append(1)
        return Crossover(weights_from=found)

    return Tuner(max_seconds=0.05, folder=folder).cross(engine, max_bytes, measure).weights_from, len(measured)


@pytest.mark.parametrize("found", [4096, None])
def test_where_gpus_win_is_remembered_beside_the_cost(tmp_path, make_engine, found):
    engine = make_engine(engine={"gpus": Gpus(devices=(0,), graphs="off", tf32="off")})
    assert tune(tmp_path, engine).source == "measured"
    assert cross(tmp_path, engine, found) == (found, 1)
    assert cross(tmp_path, engine, 1) == (found, 0)
    assert tune(tmp_path, engine).source == "remembered"
    assert len(files(tmp_path)) == 2
    # Nor does what had no room for captures say anything of a service that has.
    assert cross(tmp_path, engine, 1, max_bytes=2000) == (1, 1)
    # Half as many threads may well lose against the same GPU.
    assert cross(tmp_path, make_engine(engine={"num_threads": 2}), 1) == (1, 1)


def test_a_file_that_says_nothing_of_gpus_is_measured_again(tmp_path, make_engine, caplog):
    cross(tmp_path, make_engine(), 4096)
    (path,) = files(tmp_path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "crossover": {"weights_from": -1}}))
    assert cross(tmp_path, make_engine(), 64) == (64, 1)
    assert "is no crossover, and is measured again" in caplog.text
