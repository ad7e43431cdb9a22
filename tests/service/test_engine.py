"""Packing jobs into one run and giving everyone their own rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.bundle import LOGITS, TOP, TOP_IDS, BundleError
from attnserve.packing import add_leading_row
from attnserve.service.engine import Engine, form_feeds, split_outputs
from attnserve.service.job import Job, LogitsAnswer, TopAnswer, logits_of
from attnserve.service.observer import Observer
from attnserve.top import choose_top
from tests.chosen import copy_with_top

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


@pytest.mark.parametrize(
    ("wanted", "by_graph", "outputs"),
    [
        ([1, 3], 3, TOP),
        # More than it chooses, or all of them: the others still have what it has chosen.
        ([1, 4], 3, [LOGITS, *TOP]),
        ([None, 2], 3, [LOGITS, *TOP]),
        ([4, None], 3, [LOGITS]),
        ([1, 1], None, [LOGITS]),
    ],
)
def test_logits_are_asked_for_where_somebody_needs_them(wanted, by_graph, outputs):
    jobs = [Job(sequence=np.array([1, 2]), positions=np.array([1]), top_k=top_k) for top_k in wanted]
    assert form_feeds(jobs, top_k=by_graph).outputs == [*outputs]


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


@pytest.fixture(scope="module")
def choosing(bundles, tmp_path_factory):
    """An engine of the same bundle with a graph that chooses three entries."""
    folder = copy_with_top(bundles / "tiny" / "1", tmp_path_factory.mktemp("choosing") / "bundle", 3)
    return Engine(folder, device="cpu", num_threads=1)


@pytest.mark.parametrize("wanted", [[1, 3, 2], [3, None, 2], [4, 1, 3], [None, None, 4]])
def test_everyone_has_what_they_wanted(engine, choosing, wanted):
    sequences = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3])
    jobs = [
        Job(sequence=np.array(tokens), positions=np.arange(len(tokens)), top_k=top_k)
        for tokens, top_k in zip(sequences, wanted, strict=True)
    ]
    for one, found, expected in zip(jobs, choosing.run(jobs), engine.run(jobs), strict=True):
        # A graph that chooses nothing has all logits, whoever asks.
        assert isinstance(expected, LogitsAnswer)
        assert isinstance(found, TopAnswer) == (one.top_k in (1, 2, 3))
        assert found.is_finite()
        top_k = 3 if one.top_k is None else min(3, one.top_k)
        mine, theirs = found.find_top(top_k), choose_top(expected.logits, top_k)
        for name in ("ids", "logits"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        np.testing.assert_allclose(mine.probabilities, theirs.probabilities, rtol=1e-6)


def test_who_asks_for_little_cannot_be_given_all(choosing):
    (answer,) = choosing.run([Job(sequence=np.array([1]), positions=np.array([0]), top_k=2)])
    with pytest.raises(AssertionError, match="the likeliest entries alone"):
        logits_of(answer)
    with pytest.raises(AssertionError, match="that many"):
        answer.find_top(4)
    (answer,) = choosing.run([job([1], [0])])
    assert logits_of(answer).shape == (1, 20)


def test_of_nothing_predicted_no_entries_are_chosen(choosing):
    name = choosing.manifest.layers[1].captures["key"]
    nothing = Job(sequence=np.array([1, 2, 3]), positions=np.empty(0, np.int64), captures=frozenset({name}), top_k=1)
    (answer,) = choosing.run([nothing])
    assert answer.find_top(1).ids.shape == (0, 1)
    assert answer.captures[name].shape == (3, 2, 8)
    (answer,) = choosing.run([job([1, 2, 3], [], {name})])
    assert logits_of(answer).shape == (0, 20)


def test_what_overflows_shows_without_logits(breadth):
    engine = Engine(breadth / "halves" / "1", device="cpu", num_threads=1)
    random = np.random.default_rng(0)
    sequences = [random.normal(size=(5, 3)).astype(np.float32), np.float32([[3e38, -3e38, 3e38]] * 9)]
    jobs = [Job(sequence=features, positions=np.array([0]), top_k=2) for features in sequences]
    fine, wrong = engine.run(jobs)
    assert isinstance(fine, TopAnswer)
    assert isinstance(wrong, TopAnswer)
    assert (fine.is_finite(), wrong.is_finite()) == (True, False)


def test_costs_are_measured_as_predictions_are_answered(choosing, monkeypatch):
    asked, run = [], choosing.runtime.run
    monkeypatch.setattr(choosing.runtime, "run", lambda *given, **how: asked.append(given[2]) or run(*given, **how))
    choosing.run_lengths([3, 5])
    assert [TOP_IDS in outputs and LOGITS not in outputs for outputs in asked] == [True]


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
