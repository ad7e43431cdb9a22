"""Recordings, on the CPU: with its provider, and with a session that replays as CUDA graphs do."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from attnserve import recordings
from attnserve.bundle import TOP
from attnserve.cuda import CudaOptions
from attnserve.golden import read_golden, replay
from attnserve.packing import pack
from attnserve.recordings import GRAPH_ID, RECORDED_PER_PLACE
from attnserve.runtime import Runtime
from tests.chosen import copy_with_top
from tests.fake_cuda import Graphs

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"


class Replaying:
    """A session that, under an id a thread has recorded, runs what that ran first, whatever it is given."""

    def __init__(self, session):
        self.session = session
        self.graphs = Graphs()
        self.ids = []
        self.released = []
        self.fails = False

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run_with_iobinding(self, binding, options):
        graph_id = options.get_run_config_entry(GRAPH_ID)
        self.ids.append(graph_id)
        if graph_id != "-1":
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            binding = self.graphs.find(graph_id, binding)
        self.session.run_with_iobinding(binding, options)

    def release_captured_graph(self, graph_id):
        self.released.append(graph_id)
        self.session.release_captured_graph(graph_id)


def open_runtime(num_graphs):
    runtime = Runtime(BUNDLE, num_threads=1, binds=True, cuda=CudaOptions(num_graphs=num_graphs))
    if runtime.recordings is not None:
        runtime.session = Replaying(runtime.session)
        runtime.recordings._session = runtime.session
    return runtime


@pytest.fixture(scope="module")
def plain():
    return Runtime(BUNDLE, num_threads=1)


@pytest.fixture
def runtime():
    return open_runtime(2)


def make_batch(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return pack([generator.integers(0, 5, length) for length in lengths])


def ask(runtime, packed, **options):
    return runtime.run(packed, np.cumsum(packed.lengths) - 1, ["logits"], **options)["logits"]


def assert_equal(runtime, plain, packed):
    found, expected = ask(runtime, packed), ask(plain, packed)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= plain.manifest.certificate.logits.allowed


def test_without_graphs_nothing_is_recorded():
    assert open_runtime(0).recordings is None
    assert Runtime(BUNDLE, num_threads=1, cuda=CudaOptions(num_graphs=2)).recordings is None


def test_the_second_batch_of_a_bucket_is_recorded_and_later_ones_replay_it(runtime, plain):
    for seed in range(4):
        assert_equal(runtime, plain, make_batch(5, 3, seed=seed))
    assert runtime.session.ids == ["-1", "1", "1", "1"]
    assert len(runtime.recordings) == 1


def test_batches_of_other_sizes_share_a_bucket(runtime, plain):
    for lengths in [(5, 3), (3, 5), (6, 2), (5, 3)]:
        assert_equal(runtime, plain, make_batch(*lengths))
    assert runtime.session.ids == ["-1", "1", "1", "1"]


def test_an_answer_is_not_overwritten_by_the_next(runtime):
    first, second = make_batch(5, 3, seed=1), make_batch(5, 3, seed=2)
    ask(runtime, first)
    answer = ask(runtime, first)
    kept = answer.copy()
    assert np.abs(ask(runtime, second) - answer).max() > 0
    np.testing.assert_array_equal(answer, kept)


def test_inputs_are_not_written_to(runtime):
    first, second = make_batch(8, 8, 8, 8, seed=1), make_batch(8, 8, 8, 8, seed=2)
    kept = first.inputs.copy()
    for packed in (first, first, second):
        ask(runtime, packed)
    np.testing.assert_array_equal(first.inputs, kept)


def test_the_one_not_used_for_longest_makes_room_and_ids_are_never_used_again(runtime, plain):
    sizes = [(1,), (5,), (9,)]
    for lengths in [*sizes, *sizes]:
        assert_equal(runtime, plain, make_batch(*lengths))
    # Recorded as 1, 2 and 3; the first was released.
    assert runtime.session.released == [1]
    assert len(runtime.recordings) == 2
    assert_equal(runtime, plain, make_batch(5, seed=1))
    assert_equal(runtime, plain, make_batch(1, seed=1))
    assert runtime.session.ids[-2:] == ["2", "4"]
    assert runtime.session.released == [1, 3]


def test_recordings_are_bounded_for_ever(plain):
    runtime = open_runtime(1)
    for number in range(3 * RECORDED_PER_PLACE):
        assert_equal(runtime, plain, make_batch(1 if number % 2 else 5, seed=number))
    recorded = [graph_id for graph_id in runtime.session.ids if graph_id != "-1"]
    assert max(map(int, recorded)) == RECORDED_PER_PLACE


@pytest.mark.parametrize(
    "options",
    [{"capture": np.array([0])}, {"head_scale": np.full((3, 2), 0.5, np.float32)}],
    ids=["captures", "head scale"],
)
def test_what_is_asked_for_more_than_logits_is_plain(runtime, options):
    packed = make_batch(5, 3)
    for _ in range(3):
        ask(runtime, packed, **options)
    assert runtime.session.ids == ["-1"] * 3


@pytest.mark.parametrize("bound", ["MAX_ROWS", "MAX_CELLS"])
def test_large_batches_are_plain(runtime, monkeypatch, bound):
    monkeypatch.setattr(recordings, bound, 4)
    for _ in range(3):
        ask(runtime, make_batch(5, 3))
    assert runtime.session.ids == ["-1"] * 3


def test_a_graph_that_cannot_be_recorded_leaves_plain_runs(runtime, plain, caplog):
    assert_equal(runtime, plain, make_batch(5))
    assert_equal(runtime, plain, make_batch(5))
    runtime.session.fails = True
    with caplog.at_level(logging.ERROR):
        for seed in range(3):
            assert_equal(runtime, plain, make_batch(9, seed=seed))
            assert_equal(runtime, plain, make_batch(5, seed=seed)) if seed else None
    assert "a CUDA graph failed" in caplog.text
    assert runtime.session.ids.count("-1") == len(runtime.session.ids) - 2
    assert len(runtime.recordings) == 0


def test_golden_is_answered_from_recordings_too(runtime):
    golden = read_golden(BUNDLE)
    runtime.recordings._max_recordings = 100
    for _ in range(3):
        assert replay(runtime, golden).passed
    assert len(runtime.recordings) > 1
    assert len(set(runtime.session.ids)) < len([graph_id for graph_id in runtime.session.ids if graph_id != "-1"])


def test_runs_take_turns(runtime, monkeypatch):
    # A run that another thread makes meanwhile would spoil a graph that is recorded.
    running, overlaps = threading.Lock(), []

    def run(binding, options, make=runtime.session.run_with_iobinding):
        overlaps.append(not running.acquire(blocking=False))
        make(binding, options)
        running.release()

    monkeypatch.setattr(runtime.session, "run_with_iobinding", run, raising=False)
    threads = [
        threading.Thread(target=lambda: [ask(runtime, make_batch(5, seed=seed)) for seed in range(5)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False] * 20


def test_a_thread_records_for_itself(runtime, plain):
    # ONNX Runtime keeps graphs by thread: in another one it would record under the id again, and wait for nobody.
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in (first, second, first, second):
            for seed in range(3):
                thread.submit(assert_equal, runtime, plain, make_batch(5, 3, seed=seed)).result()
    assert runtime.recordings.is_on
    assert runtime.session.ids == ["-1", *["1"] * 2, *["2"] * 3, *["1"] * 3, *["2"] * 3]


def test_what_a_thread_recorded_is_no_later_threads(runtime, plain):
    # Even of the same number: what ends may leave it to the next one.
    for number in range(3):
        thread = threading.Thread(target=lambda: [ask(runtime, make_batch(5, seed=seed)) for seed in range(3)])
        thread.start()
        thread.join()
        assert runtime.session.ids[-1] == str(number + 1)
    assert runtime.recordings.is_on
    assert len(runtime.recordings) == 2


def test_graphs_are_of_what_is_asked_for(tmp_path):
    chosen = copy_with_top(BUNDLE, tmp_path / "chosen", 3)
    runtime, plain = (Runtime(chosen, num_threads=1, binds=binds, cuda=CudaOptions(num_graphs=4)) for binds in (1, 0))
    for _ in range(3):
        for names in (["logits"], [*TOP], ["logits", *TOP]):
            packed = make_batch(5, 3)
            rows = np.cumsum(packed.lengths) - 1
            found, expected = (one.run(packed, rows, names) for one in (runtime, plain))
            assert list(found) == names
            for name in names:
                assert (found[name].dtype, found[name].shape) == (expected[name].dtype, expected[name].shape)
                np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    assert len(runtime.recordings) == 3
