"""A bundle on GPUs, as far as ONNX Runtime's Python shows them: tests/fake_cuda.py."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from attnserve.bundle import LOGITS, NORMALISER, TOP, TOP_IDS, TOP_LOGITS, BundleError
from attnserve.cuda import CudaOptions
from attnserve.golden import read_golden, replay
from attnserve.resident import Resident, fetch
from attnserve.service.devices import Gpus
from attnserve.service.engine import Engine
from attnserve.service.job import Job, TopAnswer
from attnserve.sessions import DeviceError
from tests.chosen import copy_with_top
from tests.fake_cuda import LAUNCH_FAILURE, FakeCuda

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


def make_staying(engine, *lengths, stays=True):
    names = frozenset(name for layer in engine.manifest.layers for name in layer.captures.values())
    return [dataclasses.replace(job, captures=names, stays=stays) for job in make_jobs(*lengths)]


def assert_captured(answer, expected):
    assert answer.captures.keys() == expected.captures.keys()
    for name, array in expected.captures.items():
        np.testing.assert_allclose(fetch(answer.captures[name]), array, atol=1e-6, rtol=0)


def test_captures_stay_for_jobs_that_want_them_there(install, on_the_cpu):
    fake = install(num_gpus=2)
    engine = open_engine(CudaOptions(), CudaOptions(gpu=1))
    assert engine.devices.can_weigh
    # One that stays, one without captures, and one that comes to the host.
    jobs = [*make_staying(engine, 6), *make_jobs(4), *make_staying(engine, 3, stays=False)]
    with engine.devices.take():
        answers = engine.run(jobs)
    expected = on_the_cpu.run(jobs)
    first, second, third = answers
    # Of the GPU that ran the batch.
    assert first.weighing is engine.devices.runtimes[1].residence.weighing
    assert {type(captured) for captured in first.captures.values()} == {Resident}
    assert (second.captures, second.weighing, third.weighing) == ({}, None, None)
    assert {type(captured) for captured in third.captures.values()} == {np.ndarray}
    for answer, truth in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.logits, truth.logits, atol=1e-6, rtol=0)
        assert_captured(answer, truth)
    for layer in engine.manifest.layers:
        weights, truth = (
            answer_weighing.weigh_all(
                layer,
                answer.captures[layer.captures["query"]],
                answer.captures[layer.captures["key"]],
                steps=np.arange(6),
                heads=[1, 0],
            )
            for answer, answer_weighing in ((first, first.weighing), (expected[0], on_the_cpu.runtime.weighing))
        )
        np.testing.assert_allclose(weights, truth, atol=2e-6, rtol=0)
    on_host = first.to_host()
    assert on_host.weighing is None
    assert_captured(on_host, expected[0])
    assert fake.copied_bytes


def test_nothing_is_copied_of_what_stays(install):
    fake = install()
    engine = open_engine()
    jobs = make_staying(engine, 6, 9)
    before = fake.copied_bytes
    answers = engine.run(jobs)
    assert fake.copied_bytes - before == sum(answer.logits.nbytes for answer in answers)


def test_without_room_captures_come_to_the_host(install, on_the_cpu):
    install()
    engine = open_engine()
    residence = engine.runtime.residence
    residence.max_bytes = 1000
    (first,) = engine.run(make_staying(engine, 2))
    assert first.weighing is residence.weighing
    (second,) = engine.run(make_staying(engine, 2))
    assert second.weighing is None
    assert_captured(second, on_the_cpu.run(make_staying(engine, 2))[0])
    del first
    (third,) = engine.run(make_staying(engine, 2))
    assert third.weighing is residence.weighing


def test_a_device_whose_room_others_have_is_sound_all_the_same(install):
    fake = install()
    engine = open_engine()
    engine.runtime.residence.max_bytes = 0
    assert engine.is_sound()
    # And looked at nevertheless.
    engine = open_engine()
    engine.runtime.residence.max_bytes = 0
    fake.failure = LAUNCH_FAILURE
    assert not engine.is_sound()


def test_beside_graphs_captures_stay_where_none_writes(install, on_the_cpu):
    install()
    engine = open_engine(GRAPHS)
    engine.shrink()
    (kept,) = engine.run(make_staying(engine, 5))
    for seed in range(4):
        assert_same(engine, on_the_cpu, make_jobs(5, seed=seed))
    assert_captured(kept, on_the_cpu.run(make_staying(engine, 5))[0])
    assert kept.weighing is not None


def test_where_weights_are_wrong_on_the_device_the_cpu_computes_them(install, on_the_cpu, caplog):
    fake = install(num_gpus=2)

    def err(session, outputs):
        if session.place == ("cuda", 1):
            outputs[0] = outputs[0] * 2

    fake.distort_others = err
    with caplog.at_level(logging.WARNING):
        engine = open_engine(CudaOptions(), CudaOptions(gpu=1))
    assert "attention weights are computed on the CPU, they fail on the GPU: largest differences" in caplog.text
    assert [runtime.residence is not None for runtime in engine.devices.runtimes] == [True, False]
    assert not engine.devices.can_weigh
    # Nothing else is the worse for it.
    assert engine.report.passed
    assert engine.is_sound()
    (answer,) = engine.run(make_staying(engine, 3))
    engine.devices.settle(None)
    assert engine.runtime.residence is None
    assert_captured(answer, on_the_cpu.run(make_staying(engine, 3))[0])


def test_where_the_graphs_do_not_run_there_the_cpu_computes_them(install, caplog):
    def fail(session, outputs):
        raise RuntimeError("no kernel image is available for execution on the device")

    install().distort_others = fail
    with caplog.at_level(logging.WARNING):
        engine = open_engine()
    assert "they fail on the GPU: no kernel image" in caplog.text
    assert not engine.devices.can_weigh
    assert engine.report.passed


def test_weights_that_become_wrong_are_found(install, monkeypatch):
    fake = install()
    engine = open_engine()
    assert engine.is_sound()
    monkeypatch.setattr("attnserve.service.engine.time.monotonic", lambda: float("inf"))

    def err(session, outputs):
        outputs[0] = outputs[0] * 2

    fake.distort_others = err
    assert not engine.is_sound()


@pytest.fixture(scope="module")
def choosing(tmp_path_factory):
    """The bundle with a graph that chooses three entries."""
    return copy_with_top(BUNDLE, tmp_path_factory.mktemp("choosing") / "bundle", 3)


def ask_for(jobs, *wanted):
    return [dataclasses.replace(job, top_k=top_k) for job, top_k in zip(jobs, wanted, strict=True)]


@pytest.mark.parametrize("cuda", [CudaOptions(), GRAPHS], ids=["plain", "graphs"])
def test_logits_that_nobody_needs_are_not_copied_from_the_device(install, on_the_cpu, choosing, cuda):
    fake = install()
    engine = Engine(choosing, device="cuda", num_threads=1, cuda=(cuda,))
    (session,) = fake.sessions
    # As the first batch would do, which is therefore in no graph.
    engine.shrink()
    session.bound.clear()
    for seed in range(3):
        jobs = ask_for(make_jobs(5, 3, seed=seed), 3, 1)
        for answer, expected in zip(engine.run(jobs), on_the_cpu.run(jobs), strict=True):
            assert isinstance(answer, TopAnswer)
            np.testing.assert_array_equal(answer.find_top(1).ids[0], expected.logits.argmax(1))
            np.testing.assert_allclose(answer.find_top(1).logits[0], expected.logits.max(1), atol=1e-6)
    assert session.bound == [[*TOP]] * 3
    # One who needs them is enough for everybody's to be, and has a graph of its own.
    for seed in range(3):
        jobs = ask_for(make_jobs(5, 3, seed=seed), None, 3)
        first, second = engine.run(jobs)
        np.testing.assert_allclose(first.logits, on_the_cpu.run(jobs)[0].logits, atol=1e-6)
        assert isinstance(second, TopAnswer)
    assert session.bound[3:] == [[LOGITS, *TOP]] * 3
    recorded = [graph_id != "-1" for graph_id in session.ids[-6:]]
    assert recorded == [cuda is GRAPHS and number % 3 > 0 for number in range(6)]


def test_wrong_entries_keep_a_bundle_off_a_device(install, choosing):
    fake = install()

    def distort(session, outputs):
        for name, array in zip(session.bound[-1], outputs, strict=True):
            if name == NORMALISER:
                array[:] *= 1.001

    fake.distort = distort
    with pytest.raises(BundleError, match="answers the top entries are not those of their logits"):
        Engine(choosing, device="cuda", num_threads=1)


def test_on_a_device_equal_logits_may_come_in_any_order(install, choosing):
    # ONNX says which is first; how a GPU chooses among many has been read, not seen.
    fake = install()

    def distort(session, outputs):
        found = dict(zip(session.bound[-1], outputs, strict=True))
        if LOGITS in found and TOP_IDS in found:
            found[LOGITS][:] = 0
            found[TOP_LOGITS][:] = 0
            found[TOP_IDS][:] = [4, 2, 3]
            found[NORMALISER][:] = found[LOGITS].shape[1]

    engine = Engine(choosing, device="cuda", num_threads=1)
    fake.distort = distort
    report = replay(engine.runtime, read_golden(choosing))
    assert report.num_wrong_top == 0
