"""A bundle on GPUs, as far as ONNX Runtime's Python shows them: tests/fake_cuda.py."""

import logging
from pathlib import Path

import numpy as np
import pytest

from attnserve.bundle import BundleError
from attnserve.cuda import CudaOptions
from attnserve.golden import read_golden
from attnserve.service.devices import Gpus
from attnserve.service.engine import Engine, Job
from attnserve.sessions import DeviceError
from tests.fake_cuda import FakeCuda

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
GRAPHS = CudaOptions(num_graphs=4)


def open_engine(*cuda, device="cuda"):
    return Engine(BUNDLE, device=device, num_threads=1, cuda=cuda or (CudaOptions(),))


@pytest.fixture(scope="module")
def on_the_cpu():
    return open_engine(device="cpu")


@pytest.fixture
def install(monkeypatch):
    def make(**options):
        fake = FakeCuda(**options)
        fake.install(monkeypatch.setattr)
        return fake

    return make


def make_jobs(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [Job(sequence=generator.integers(0, 5, length), positions=np.array([length - 1])) for length in lengths]


def assert_same(engine, reference, jobs):
    for found, expected in zip(engine.run(jobs), reference.run(jobs), strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6, rtol=0)


def test_the_cpu_has_none(on_the_cpu):
    assert on_the_cpu.gpus is None
    assert len(on_the_cpu.devices.runtimes) == 1


def test_options_are_those_of_the_session(install):
    fake = install(num_gpus=3)
    engine = open_engine(CudaOptions(gpu=2, memory_bytes=10**9, arena="as-requested"))
    (session,) = fake.sessions
    assert session.options == {
        "device_id": "2",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "gpu_mem_limit": "1000000000",
    }
    assert (engine.device, engine.provider) == ("cuda", "CUDAExecutionProvider")
    assert engine.gpus == Gpus(devices=(2,), graphs="off", tf32="off")


def test_golden_is_replayed_by_graphs_and_they_are_forgotten(install, on_the_cpu):
    fake = install()
    engine = open_engine(GRAPHS)
    (session,) = fake.sessions
    recorded = [graph_id for graph_id in session.ids if graph_id != "-1"]
    # Recorded of other inputs, and then run.
    assert recorded
    assert {recorded.count(graph_id) for graph_id in recorded} == {2}
    assert session.released == sorted(map(int, set(recorded)))
    assert engine.gpus.graphs == "on"
    # The first run gives memory back, and is no graph.
    engine.shrink()
    before = len(session.ids)
    for seed in range(4):
        assert_same(engine, on_the_cpu, make_jobs(5, 3, seed=seed))
    new = str(max(map(int, recorded)) + 1)
    assert session.ids[before:] == ["-1", new, new, new]
    engine.shrink()
    assert session.ids[-1] == "-1"
    assert session.released[-1] != int(new)
    engine.forget_graphs()
    assert session.released[-1] == int(new)


def test_wrong_graphs_are_switched_off(install, on_the_cpu, caplog):
    fake = install(graphs_are_wrong=True)
    with caplog.at_level(logging.WARNING):
        engine = open_engine(GRAPHS)
    assert "without CUDA graphs, by which golden fails: largest differences" in caplog.text
    assert engine.gpus.graphs == "failed"
    before = len(fake.sessions[0].ids)
    for seed in range(4):
        assert_same(engine, on_the_cpu, make_jobs(5, 3, seed=seed))
    assert set(fake.sessions[0].ids[before:]) == {"-1"}
    assert engine.report.passed


def test_a_model_that_cannot_have_graphs_does_without(install, on_the_cpu, caplog):
    fake = install(refuses_graphs=True)
    with caplog.at_level(logging.WARNING):
        engine = open_engine(GRAPHS)
    assert "without CUDA graphs, which it cannot have: " in caplog.text
    assert engine.gpus.graphs == "failed"
    assert "enable_cuda_graph" not in fake.sessions[0].options
    assert_same(engine, on_the_cpu, make_jobs(5, 3))


def test_tf32_where_golden_bears_it(install, caplog):
    fake = install()
    engine = open_engine(CudaOptions(tf32_error=1e-3))
    (session,) = fake.sessions
    assert (session.options["use_tf32"], engine.gpus.tf32) == ("1", "on")
    assert engine.report.certificate.logits.allowed > engine.manifest.certificate.logits.allowed
    assert engine.is_sound()


@pytest.mark.parametrize(("error", "tf32"), [(1e-2, "on"), (1e-4, "failed")])
def test_tf32_is_what_golden_measures(install, monkeypatch, caplog, error, tf32):
    fake = install()
    largest = float(np.abs(read_golden(BUNDLE).logits).max())

    def err(session, outputs):
        if session.options["use_tf32"] == "1":
            outputs[0] += np.float32(1e-3 * largest)

    fake.distort = err
    with caplog.at_level(logging.WARNING):
        engine = open_engine(CudaOptions(tf32_error=error))
    assert engine.gpus.tf32 == tf32
    assert [session.options["use_tf32"] for session in fake.sessions] == ["1", "0"][: 1 + (tf32 == "failed")]
    assert ("without TF32, whose error is larger than allowed" in caplog.text) == (tf32 == "failed")
    assert engine.report.passed
    # What is measured is told.
    assert (engine.report.logits > 5e-4 * largest) == (tf32 == "on")


def test_runs_are_spread_over_gpus(install, on_the_cpu, monkeypatch):
    fake = install(num_gpus=2)
    engine = open_engine(CudaOptions(), CudaOptions(gpu=1))
    assert engine.gpus == Gpus(devices=(0, 1), graphs="off", tf32="off")
    first, second = fake.sessions
    assert len(first.ids) == len(second.ids) > 0, "golden is not replayed on both"
    # While one GPU is at work, the other one takes what comes.
    devices = engine.devices
    with devices.take() as busy:
        with devices.take() as other:
            assert (busy.gpu, other.gpu) == (0, 1)
            with devices.take() as third:
                assert third.gpu == 0
        before = len(second.ids)
        assert_same(engine, on_the_cpu, make_jobs(5, 3))
        assert len(second.ids) == before + 1
    with devices.take() as again:
        assert again.gpu == 0


def test_one_gpu_that_is_not_sound_is_enough(install, monkeypatch):
    install(num_gpus=2)
    engine = open_engine(CudaOptions(), CudaOptions(gpu=1))
    assert engine.is_sound()
    monkeypatch.setattr("attnserve.service.engine.time.monotonic", lambda: float("inf"))

    def fail(*_, **__):
        raise RuntimeError("CUDA failure 719")

    monkeypatch.setattr(engine.devices.runtimes[1], "run", fail)
    assert not engine.is_sound()


def test_a_gpu_that_is_not_there(install):
    install(num_gpus=2)
    with pytest.raises(DeviceError, match=r"expected a usable CUDA device, got none: .*invalid device ordinal"):
        open_engine(CudaOptions(), CudaOptions(gpu=2))
    # What was to be chosen has been, by the first one.
    with pytest.raises(DeviceError, match="invalid device ordinal"):
        open_engine(CudaOptions(), CudaOptions(gpu=2), device="auto")
    engine = open_engine(CudaOptions(gpu=2), CudaOptions(gpu=3), device="auto")
    assert (engine.gpus, len(engine.devices.runtimes)) == (None, 1)


def test_a_gpu_that_answers_wrongly_is_refused(install, monkeypatch):
    fake = install()

    def err(session, outputs):
        outputs[0] += 1

    fake.distort = err
    with pytest.raises(BundleError, match=r"golden replay failed: .*on cuda"):
        open_engine()
