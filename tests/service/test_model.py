"""How a version comes to answer, and how it goes when nobody holds it any more."""

import asyncio
import dataclasses
import gc
import json
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from attnserve.bundle import BundleError
from attnserve.records import to_json
from attnserve.service import model as module
from attnserve.service.devices import Gpus
from attnserve.service.job import Job
from attnserve.service.model import batch_memory, check_room, describe_device, describe_manifest, load_model, make_tuner
from attnserve.service.observer import NOBODY
from attnserve.service.settings import Settings
from tests.kernels.library import build_library, build_recognisable


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"card": {"number": 2**64}}, "cannot be written as JSON"),
        ({"card": {"text": "\ud800"}}, "cannot be written as JSON"),
    ],
)
def test_what_only_an_answer_would_stumble_over(make_manifest, fields, message):
    with pytest.raises(BundleError, match=message):
        describe_manifest(make_manifest(**fields))


def test_a_manifest_is_written_once_for_all_answers(make_manifest):
    manifest = make_manifest(labels=tuple("abcdefghij"), card={"any": [None, 1.5, "thing"]})
    described = describe_manifest(manifest)
    assert orjson.loads(orjson.dumps(described)) == json.loads(json.dumps(to_json(manifest)))
    assert {type(field) for field in described.values()} == {orjson.Fragment}


@pytest.mark.parametrize(("free", "fits"), [(2400, True), (2399, False)])
def test_room_for_what_is_read_and_what_is_made_of_it(tmp_path, monkeypatch, free, fits):
    monkeypatch.setattr(module, "free_memory", lambda: free)
    (tmp_path / "weights").mkdir()
    (tmp_path / "model.onnx").write_bytes(bytes(1000))
    (tmp_path / "weights" / "softmax.onnx").write_bytes(bytes(200))
    if fits:
        check_room(tmp_path)
        return
    with pytest.raises(BundleError, match="about 2400 bytes of memory beside what is loaded, and 2399 are free"):
        check_room(tmp_path)


def test_memory_of_batches_is_that_of_where_they_run(monkeypatch):
    cpu, gpu = (SimpleNamespace(gpus=gpus) for gpus in (None, Gpus(devices=(0, 1), graphs="on", tf32="off")))
    monkeypatch.setattr(module, "memory_limit", lambda: 64)
    monkeypatch.setattr(module, "gpu_memory", lambda: 24)
    assert batch_memory(cpu, Settings(gpu_memory_bytes=8)) == 64
    assert batch_memory(gpu, Settings(gpu_memory_bytes=8)) == 8
    assert batch_memory(gpu, Settings()) == 24
    # No driver says how much there is.
    monkeypatch.setattr(module, "gpu_memory", lambda: 0)
    assert batch_memory(gpu, Settings()) == 64


def test_the_log_says_how_gpus_are_used():
    gpus = Gpus(devices=(0, 1), graphs="failed", tf32="off")
    assert describe_device(SimpleNamespace(device="cpu", gpus=None)) == "cpu"
    engine = SimpleNamespace(device="cuda", gpus=gpus)
    assert describe_device(engine) == "cuda 0, 1 (CUDA graphs failed, TF32 off, weights off)"
    engine.gpus = dataclasses.replace(gpus, weights_from=4096)
    assert describe_device(engine).endswith("weights from 4096)")


def settings(**fields):
    quick = {"tuning_seconds": 0.1, "tuning_cache": "", "num_threads": 1, "device": "cpu", "kernels": "off"}
    return Settings(**{**quick, **fields})


def load(folder, limits):
    return load_model(folder, limits, make_tuner(limits), observer=NOBODY, on_lost=lambda: None, is_idle=True)


def job(*tokens):
    return Job(sequence=np.array(tokens), positions=np.array([len(tokens) - 1]))


def threads_of(model):
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"engine-{model}")]


def test_a_model_is_loaded_measured_and_answers(bundles):
    model = load(bundles / "tiny" / "1", settings(engines=2))
    try:
        assert (model.name, model.version, model.tuning.source) == ("tiny", 1, "measured")
        assert (model.tuning.num_engines, model.tuning.num_threads, len(threads_of("tiny"))) == (2, 1, 2)
        # Proving and measuring it was no traffic.
        assert model.statistics.describe()["inference_count"] == 0
        answers = asyncio.run(model.batcher.submit([job(1, 2, 3), job(4)]))
        assert [answer.logits.shape for answer in answers] == [(1, 20), (1, 20)]
        assert model.statistics.describe()["inference_count"] == 2
    finally:
        model.batcher.close()


def test_cores_are_shared_by_engines(bundles, monkeypatch):
    monkeypatch.setattr(module, "count_cores", lambda: 8)
    for engines, threads in ((1, 8), (3, 2), (16, 1)):
        model = load(bundles / "tiny" / "1", settings(num_threads=0, engines=engines))
        model.batcher.close()
        assert (model.tuning.num_engines, model.tuning.num_threads) == (engines, threads)


def test_a_model_that_nobody_holds_is_freed_and_its_workers_end(bundles):
    model = load(bundles / "tiny" / "1", settings(engines=2))
    workers, engine = threads_of("tiny"), weakref.ref(model.engine)
    assert len(workers) == 2
    model = None
    gc.collect()
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()
    # A thread's frames are gone only after it has ended.
    gc.collect()
    assert engine() is None


def test_what_is_queued_when_the_last_holder_lets_go_is_answered(bundles):
    model = load(bundles / "tiny" / "1", settings())

    async def ask():
        nonlocal model
        batcher = model.batcher
        asked = [asyncio.create_task(batcher.submit([job(number, 1)])) for number in range(8)]
        await asyncio.sleep(0)
        model = None
        gc.collect()
        assert not batcher.is_open
        return await asyncio.gather(*asked)

    assert len(asyncio.run(ask())) == 8


def test_kernels_compute_attention_where_they_are_right(bundles):
    model = load(bundles / "tiny" / "1", settings(kernels=str(build_library())))
    model.batcher.close()
    assert (model.kernels, model.engine.kernels, model.tuning.cost.pads) == ("on", build_library(), False)
    assert model.engine.report.passed
    model = load(bundles / "tiny" / "1", settings(kernels="off"))
    model.batcher.close()
    assert (model.kernels, model.engine.kernels, model.tuning.cost.pads) == ("off", None, True)


def test_kernels_that_fail_golden_are_switched_off_for_the_model(bundles, caplog):
    model = load(bundles / "tiny" / "1", settings(kernels=str(build_recognisable())))
    model.batcher.close()
    assert (model.kernels, model.engine.kernels, model.tuning.cost.pads) == ("failed", None, True)
    assert model.engine.report.passed
    assert "kernels are switched off for it, function bodies serve" in caplog.text
    assert "OUTSIDE THE CERTIFICATE" in caplog.text


def test_kernels_that_cannot_be_loaded_are_none(bundles, tmp_path, caplog):
    library = tmp_path / "kernels.so"
    library.write_text("not a library")
    model = load(bundles / "tiny" / "1", settings(kernels=str(library)))
    model.batcher.close()
    assert model.kernels == "failed"
    assert "function bodies serve" in caplog.text


def test_a_damaged_bundle_is_no_fault_of_kernels(copy_bundle, tmp_path, caplog):
    folder = copy_bundle(tmp_path / "tiny" / "1")
    (folder / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        load(folder, settings(kernels=str(build_library())))
    assert "kernels" not in caplog.text
