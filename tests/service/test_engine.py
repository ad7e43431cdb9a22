"""Packing jobs into one run and giving everyone their own rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.bundle import LOGITS, BundleError
from attnserve.packing import add_leading_row
from attnserve.service.engine import Engine, Job, form_feeds, split_outputs
from attnserve.service.observer import Observer

NONE: frozenset[str] = frozenset()
QUERY, KEY, HIDDEN = "layers.0.query", "layers.0.key", "layers.1.hidden"


def job(tokens, positions, captures=NONE) -> Job:
    return Job(sequence=np.array(tokens), positions=np.array(positions, np.int64), captures=frozenset(captures))


def run(feeds):
    """Stands in for the graph: every output row names the row, the token and the output it was made from."""
    tokens, steps = feeds.packed.inputs, feeds.packed.positions
    rows = {name: feeds.rows if name == LOGITS else feeds.capture for name in feeds.outputs}
    codes = {name: number for number, name in enumerate(sorted(rows))}
    return {
        name: np.stack([tokens[index], steps[index], np.full(len(index), codes[name])], axis=1)
        for name, index in rows.items()
    }


def test_feeds_by_hand():
    feeds = form_feeds([job([7, 8, 9], [2, 0]), job([5], [0], {KEY}), job([6, 4], [1], {KEY, QUERY})])
    assert feeds.rows.tolist() == [2, 0, 3, 5]
    assert feeds.capture.tolist() == [3, 4, 5]
    assert feeds.outputs == [LOGITS, KEY, QUERY]
    assert (feeds.rows.dtype, feeds.capture.dtype) == (np.int64, np.int64)


def test_nothing_captured_captures_no_rows():
    feeds = form_feeds([job([1, 2], [1]), job([3], [0])])
    assert feeds.outputs == [LOGITS]
    assert (feeds.capture.shape, feeds.capture.dtype) == ((0,), np.int64)


def test_nothing_predicted_predicts_no_rows():
    # Captures alone are a fair question, and R = 0 must not shift anybody's rows.
    jobs = [job([1, 2], [], {KEY}), job([3, 4], [0]), job([5], [])]
    feeds = form_feeds(jobs)
    assert (feeds.rows.tolist(), feeds.rows.dtype) == ([2], np.int64)
    answers = split_outputs(jobs, run(feeds))
    assert [len(answer.logits) for answer in answers] == [0, 1, 0]
    assert answers[0].captures[KEY][:, 0].tolist() == [1, 2]
    assert form_feeds([job([1], [])]).rows.shape == (0,)


tokens = st.lists(st.integers(0, 99), min_size=1, max_size=6)
captures = st.sets(st.sampled_from([QUERY, KEY, HIDDEN]))


@st.composite
def jobs_to_run(draw):
    sequence = draw(tokens)
    return job(sequence, draw(st.lists(st.integers(0, len(sequence) - 1), max_size=5)), draw(captures))


@settings(deadline=None, derandomize=True)
@given(st.lists(jobs_to_run(), min_size=1, max_size=6))
def test_everyone_gets_their_own(jobs):
    feeds = form_feeds(jobs)
    outputs = run(feeds)
    codes = {name: number for number, name in enumerate(sorted(outputs))}
    for one, answer in zip(jobs, split_outputs(jobs, outputs), strict=True):
        expected = [[one.sequence[position], position, codes[LOGITS]] for position in one.positions.tolist()]
        assert answer.logits.tolist() == expected
        assert set(answer.captures) == one.captures
        for name, rows in answer.captures.items():
            assert rows.tolist() == [[token, step, codes[name]] for step, token in enumerate(one.sequence.tolist())]


@pytest.fixture(scope="module")
def engine(bundles):
    return Engine(bundles / "tiny" / "1", device="cpu", num_threads=1)


def test_an_engine_is_proven(engine):
    assert engine.report.passed
    assert engine.device == "cpu"
    assert engine.verdict.startswith("golden replayed, logits ")


def test_a_device_is_sound_while_it_answers_golden(bundles, monkeypatch, caplog):
    engine = Engine(bundles / "tiny" / "1", device="cpu", num_threads=1)
    now, run = [0.0], engine.runtime.run
    monkeypatch.setattr("attnserve.service.engine.time.monotonic", lambda: now[0])
    assert engine.is_sound()

    def lie(*arguments, **options):
        return {name: values + 1 for name, values in run(*arguments, **options).items()}

    def fail(*_, **__):
        raise RuntimeError("CUDA failure 719")

    for broken, is_logged in ((lie, False), (fail, True)):
        monkeypatch.setattr(engine.runtime, "run", broken)
        # Just looked at: a client who sends what fails again and again must not keep the device busy.
        assert engine.is_sound()
        now[0] += 1
        assert not engine.is_sound()
        # Wrong answers are no failure to answer.
        assert ("golden cannot be replayed" in caplog.text) == is_logged
        # What is not sound is not believed for a second.
        assert not engine.is_sound()
        monkeypatch.setattr(engine.runtime, "run", run)
        assert engine.is_sound()
    assert "CUDA failure 719" in caplog.text


def test_its_observer_is_told(bundles):
    class Told(Observer):
        def ran(self, batch):
            told.append((batch.lengths, batch.pads, batch.pack_seconds >= 0, batch.compute_seconds > 0))

    told = []
    engine = Engine(bundles / "tiny" / "1", device="cpu", num_threads=1, observer=Told())
    # Nothing of proving it.
    assert told == []
    engine.run([job([1, 2], [0]), job([3], [0])])
    engine.run_lengths([4, 5])
    assert told == [([2, 1], True, True, True), ([4, 5], True, True, True)]


def test_batch_mates_do_not_matter(engine):
    random = np.random.default_rng(0)
    names = [engine.manifest.layers[layer].captures[kind] for layer in (0, 2) for kind in ("query", "key")]
    jobs = [
        job(random.integers(0, 20, length), [length - 1, 0], names if length % 2 else ())
        for length in (9, 4, 1, 120, 33)
    ]
    for one, together in zip(jobs, engine.run(jobs), strict=True):
        (alone,) = engine.run([one])
        np.testing.assert_allclose(together.logits, alone.logits, atol=1e-5, rtol=0)
        assert set(together.captures) == set(alone.captures) == one.captures
        for name in one.captures:
            assert together.captures[name].shape == alone.captures[name].shape == (len(one.sequence), 2, 8)
            np.testing.assert_allclose(together.captures[name], alone.captures[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["leading", "halves"])
def test_what_overflows_in_one_sequence_stays_there(breadth, name):
    engine = Engine(breadth / name / "1", device="cpu", num_threads=1)
    random = np.random.default_rng(0)

    def ask(features):
        features = np.float32(features)
        return job(add_leading_row(features) if name == "leading" else features, [0])

    jobs = [ask(random.normal(size=(length, 3))) for length in (5, 1, 7)]
    jobs.insert(1, ask([[3e38, -3e38, 3e38]] * 9))
    together = engine.run(jobs)
    assert np.isnan(together[1].logits).any()
    for index in (0, 2, 3):
        (alone,) = engine.run([jobs[index]])
        np.testing.assert_allclose(together[index].logits, alone.logits, atol=4e-3 if name == "halves" else 1e-5)


def test_heads_are_switched_off_for_those_who_ask(engine):
    scale = np.ones((3, 2), np.float32)
    scale[1, 0] = 0
    plain, off = (
        job([3, 1, 4, 1, 5], [4]),
        Job(sequence=np.array([3, 1, 4, 1, 5]), positions=np.array([4]), head_scale=scale),
    )
    half = Job(sequence=np.array([3, 1]), positions=np.array([1]), head_scale=scale / 2)
    (before,), (after,), (halved,) = engine.run([plain]), engine.run([off]), engine.run([half])
    assert np.abs(before.logits - after.logits).max() > 1e-3
    # Whoever shares the batch, in whatever order.
    mixed = engine.run([off, plain, half, off, plain])
    for found, expected in zip(mixed, (after, before, halved, after, before), strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_a_run_may_predict_nothing(engine):
    name = engine.manifest.layers[1].captures["key"]
    (answer,) = engine.run([job([1, 2, 3], [], {name})])
    assert answer.logits.shape == (0, 20)
    assert answer.captures[name].shape == (3, 2, 8)


def test_a_bundle_outside_its_certificate_is_refused(copy_bundle, tmp_path):
    import json

    folder = copy_bundle(tmp_path / "tiny" / "1")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["certificate"]["logits"]["allowed"] = 1e-12
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="golden replay failed"):
        Engine(folder, device="cpu", num_threads=1)


def test_memory_is_given_back_now_and_then(bundles, monkeypatch):
    engine = Engine(bundles / "tiny" / "1", device="cpu", num_threads=1)
    run, seen = engine.runtime.run, []

    def watched(*arguments, shrink=False, **options):
        seen.append(shrink)
        return run(*arguments, shrink=shrink, **options)

    monkeypatch.setattr(engine.runtime, "run", watched)
    trimmed = []
    monkeypatch.setattr("attnserve.service.engine.trim_malloc", lambda: trimmed.append(len(seen)))
    now = [100.0]
    monkeypatch.setattr("attnserve.service.engine.time", SimpleNamespace(perf_counter=lambda: now[0]))
    for seconds in (0, 1, 8.9, 0.2, 0, 11):
        now[0] += seconds
        engine.run_lengths([3, 5])
    assert seen == [True, False, False, True, False, True]
    assert trimmed == [1, 4, 6]


def test_memory_is_given_back_when_told_and_nobody_is_told(bundles, monkeypatch):
    told = []
    observer = SimpleNamespace(ran=lambda batch: told.append(batch.lengths))
    engine = Engine(bundles / "tiny" / "1", device="cpu", num_threads=1, observer=observer)
    run, seen = engine.runtime.run, []

    def watched(*arguments, shrink=False, **options):
        seen.append(shrink)
        return run(*arguments, shrink=shrink, **options)

    monkeypatch.setattr(engine.runtime, "run", watched)
    trimmed = []
    monkeypatch.setattr("attnserve.service.engine.trim_malloc", lambda: trimmed.append(len(seen)))
    engine.shrink()
    # Just done: the next batch does not do it again.
    engine.run_lengths([3, 5])
    assert seen == [True, False]
    assert trimmed == [1]
    assert told == [[3, 5]]
