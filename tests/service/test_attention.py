"""Diagnostics where the running tests' causal model cannot reach: windows, both directions, rows that see nothing."""

import json
import math

import numpy as np
import pytest

from attnserve.service.attention import CONTINUED_BYTES, check_size, diagnose, held_bytes
from attnserve.service.preprocess import parse_attention, parse_predict
from attnserve.service.problems import TooLarge
from attnserve.service.sequences import Reader
from attnserve.weighing import WeightRows

ALL = ("entropy", "distance", "sink", "previous_token", "self", "received")


def make_rows(num_heads, num_keys, steps, *, causal, window, seed=0) -> WeightRows:
    """Random weights over the keys that each row may see; the last head sees nothing it likes."""
    steps = np.array(steps)
    last = steps if causal else np.full_like(steps, num_keys - 1)
    first = np.zeros_like(steps)
    if window:
        first, last = np.maximum(steps - window + 1, 0), np.minimum(last, steps + window - 1)
    keys = np.arange(num_keys)
    seen = (keys >= first[:, None]) & (keys <= last[:, None])
    weights = np.random.default_rng(seed).random((num_heads, len(steps), num_keys)) * seen
    weights /= weights.sum(-1, keepdims=True)
    weights[-1] = 0
    weights = weights.astype(np.float32)
    everything = {"rows": slice(0, len(steps)), "columns": slice(0, num_keys)}
    return WeightRows(steps=steps, first_key=first, last_key=last, scores=None, weights=weights, **everything)


def slowly(rows: WeightRows, head: int) -> dict:
    """The definitions in service/attention.py, one number at a time."""
    bits, normalised, distance, sink, previous, own = [], [], [], [], [], []
    num_keys = rows.weights.shape[-1]
    received = [[] for _ in range(num_keys)]
    for number, step in enumerate(rows.steps.tolist()):
        row = rows.weights[head, number].astype(float).tolist()
        entropy = -sum(w * math.log2(w) for w in row if w > 0)
        bits.append(entropy)
        seen = range(int(rows.first_key[number]), int(rows.last_key[number]) + 1)
        if len(seen) > 1:
            normalised.append(entropy / math.log2(len(seen)))
        distance.append(sum(w * abs(step - key) for key, w in enumerate(row)))
        sink.append(row[0])
        if step > 0:
            previous.append(row[step - 1])
        own.append(row[step])
        for key in seen:
            received[key].append(row[key])
    return {
        "entropy_bits": mean(bits),
        "entropy_normalised": mean(normalised),
        "distance": mean(distance),
        "sink": mean(sink),
        "previous_token": mean(previous),
        "self": mean(own),
        "received": [mean(values) for values in received],
    }


def mean(values) -> float:
    return sum(values) / len(values) if values else math.nan


def halves(rows: WeightRows):
    """The same rows in two blocks, as long sequences come: each with the keys that one of its rows may see."""
    middle = len(rows.steps) // 2
    for part in (slice(0, middle), slice(middle, len(rows.steps))):
        if part.start == part.stop:
            continue
        columns = slice(rows.first_key[part].min(), rows.last_key[part].max() + 1)
        yield WeightRows(
            rows=part,
            steps=rows.steps[part],
            first_key=rows.first_key[part],
            last_key=rows.last_key[part],
            columns=columns,
            scores=None,
            weights=rows.weights[:, part, columns],
        )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("steps", [range(9), [8], [0], [5, 2, 2, 0]], ids=str)
def test_definitions(causal, window, steps):
    rows = make_rows(3, 9, list(steps), causal=causal, window=window)
    for blocks in (iter([rows]), halves(rows)):
        measured = diagnose(blocks, ALL, 9)
        assert list(measured)[:2] == ["entropy_bits", "entropy_normalised"]
        for head in range(3):
            for name, expected in slowly(rows, head).items():
                np.testing.assert_allclose(measured[name][head], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_only_what_is_asked_for_is_measured_in_that_order():
    rows = make_rows(2, 4, [0, 1, 2, 3], causal=True, window=0)
    assert list(diagnose(iter([rows]), ("self", "entropy"), 4)) == ["self", "entropy_bits", "entropy_normalised"]


def test_zero_has_no_sign():
    rows = make_rows(1, 1, [0], causal=True, window=0)
    for value in diagnose(iter([rows]), ("entropy", "distance"), 1).values():
        assert not np.signbit(value[~np.isnan(value)]).any()


def ask(manifest, parse=parse_attention, **fields):
    return parse(json.dumps({"sequences": [[1] * 100, [2] * 50], **fields}).encode(), Reader(manifest))


@pytest.mark.parametrize(
    ("fields", "num_values"),
    [
        # 2 layers x 4 heads x (100^2 + 50^2) weights, x 6 measures, or x (1 measure and 150 keys).
        ({"quantity": "weights"}, 8 * 12_500),
        ({"quantity": "weights", "layers": [0, 0, 0], "heads": [1], "queries": "last"}, 3 * 150),
        ({"quantity": "diagnostics"}, 8 * 6 * 2),
        ({"quantity": "diagnostics", "diagnostics": ["self", "received"]}, 8 * (2 + 150)),
    ],
)
def test_the_size_of_an_answer(make_manifest, monkeypatch, fields, num_values):
    request = ask(make_manifest(), **fields)
    check_size(request, as_json=False, max_response_bytes=num_values * 4)
    with pytest.raises(TooLarge, match=f"this one needs {num_values * 4};"):
        check_size(request, as_json=False, max_response_bytes=num_values * 4 - 1)
    monkeypatch.setattr("attnserve.service.attention.MAX_ENTRIES", num_values)
    check_size(request, as_json=True, max_response_bytes=10**9)
    monkeypatch.setattr("attnserve.service.attention.MAX_ENTRIES", num_values - 1)
    with pytest.raises(TooLarge, match=rf"this one needs {num_values}; .* application/x-safetensors"):
        check_size(request, as_json=True, max_response_bytes=10**9)


def test_float16_halves_weights_and_only_weights(make_manifest):
    manifest = make_manifest()
    check_size(ask(manifest, quantity="weights", dtype="float16"), as_json=False, max_response_bytes=8 * 12_500 * 2)
    with pytest.raises(TooLarge, match="needs 384;"):
        check_size(ask(manifest, dtype="float16"), as_json=False, max_response_bytes=8 * 6 * 2 * 4 - 1)


def test_diagnostics_of_a_lot_are_work_too(make_manifest, monkeypatch):
    request = ask(make_manifest(), heads=[0, 1] * 50)
    monkeypatch.setattr("attnserve.service.attention.MAX_WEIGHTS", 2 * 2 * 12_500)
    check_size(request, as_json=True, max_response_bytes=10**9)
    monkeypatch.setattr("attnserve.service.attention.MAX_WEIGHTS", 2 * 2 * 12_500 - 1)
    with pytest.raises(TooLarge, match="at most 49999 weights are computed for one answer, this one needs 50000"):
        check_size(request, as_json=True, max_response_bytes=10**9)


def test_memory_that_waits_for_its_answer(make_manifest):
    manifest = make_manifest()
    ids = 150 * 8
    assert held_bytes(ask(manifest, parse_predict), manifest) == ids + 2 * 10 * 4
    assert held_bytes(ask(manifest, parse_predict, positions="all"), manifest) == ids + 150 * 10 * 4
    # One layer's queries and keys of every step: 4 + 4 heads of 8 channels.
    assert held_bytes(ask(manifest, layers=[0, 0, -2]), manifest) == ids + (2 * 10 + 150 * 64) * 4
    # What was said is kept until all is said.
    more = ask(make_manifest(max_length=107), parse_predict, **{"continue": 7})
    assert held_bytes(more, manifest) == ids + 2 * 10 * 4 + 2 * 7 * CONTINUED_BYTES


def test_features_wait_for_their_answer_too(make_manifest):
    manifest = make_manifest(vocabulary_size=None, num_features=3, task="classify_token", num_classes=2)
    asked = parse_predict(json.dumps({"sequences": [[[1, 2, 3]] * 5]}).encode(), Reader(manifest))
    assert held_bytes(asked, manifest) == 5 * 3 * 4 + 5 * 2 * 4
