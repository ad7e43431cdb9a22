"""Answers about attention, of every quantity, put together in every way, against their definitions.

Of models that the running service's tests cannot reach: windows, both directions, grouped heads, rows that see nothing.
"""

import json
import math
from itertools import product

import numpy as np
import pytest

from attnserve.service import extents
from attnserve.service.attention import (
    CONTINUED_BYTES,
    captures_for,
    check_size,
    compute_arrays,
    count_weights,
    held_bytes,
)
from attnserve.service.preprocess import parse_attention, parse_predict
from attnserve.service.problems import TooLarge
from attnserve.service.sequences import Reader
from attnserve.text import TextReader
from attnserve.weighing import Weighing
from tests.kinds import make_tokenizer
from tests.service import slowly
from tests.service.conftest import make_layer

EXPRESSIVE = {"variant": "expressive", "op": "ExpressiveAttention", "weighting": "expressive", "epsilon": 0.01}
MODELS = {
    "causal": (make_layer(0), make_layer(1, **EXPRESSIVE, num_key_heads=2)),
    "both ways": (make_layer(0, causal=False, softcap=2.0), make_layer(1, **EXPRESSIVE, causal=False)),
    "windows": (make_layer(0, window=3), make_layer(1, window=2, causal=False, num_key_heads=1)),
    "causal windows": (make_layer(0, window=5), make_layer(1, **EXPRESSIVE, window=2)),
}
SEQUENCES = [[1, 2, 3, 1, 2, 3, 1, 1], [4, 4], [5], [1, 2, 1, 3, 1]]
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
# Measures are the same, whoever adds up the rows.
however_added_up = pytest.mark.parametrize("weighing", ["rows", "bodies", "kernels"], indirect=True)


@pytest.fixture(scope="module", params=MODELS)
def manifest(request, make_manifest):
    layers = MODELS[request.param]
    return make_manifest(layers=layers, causal=all(layer.causal for layer in layers), vocabulary_size=300)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(ended=True).save(str(path))
    return TextReader(path)


@pytest.fixture
def ask(manifest, reader, weighing, answer_randomly, monkeypatch):
    """The question, its arrays and the truth about every sequence."""
    # Blocks of a few rows, as long sequences come in.
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", 1)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 3)
    monkeypatch.setattr("attnserve.service.maps.MAX_JOINED", 100)

    def answer(sequences=SEQUENCES, **fields):
        request = parse_attention(json.dumps({"sequences": sequences, **fields}).encode(), Reader(manifest, reader))
        answers = answer_randomly(request, manifest)
        arrays = compute_arrays(weighing, manifest.layers, request, answers)
        truths = [
            slowly.find_truth(manifest.layers, one, read.values.tolist())
            for one, read in zip(answers, request.inputs, strict=True)
        ]
        return request.attention, arrays, truths, answers

    return answer


def check_maps(asked) -> None:
    question, arrays, truths, _ = asked
    find = slowly.find_rollout if question.quantity == "rollout" else slowly.find_maps
    for index, (by_name, truth) in enumerate(zip(arrays, truths, strict=True)):
        assert list(by_name) == [question.quantity]
        assert by_name[question.quantity].flags.c_contiguous
        np.testing.assert_allclose(by_name[question.quantity], find(question, index, truth), **CLOSE)


@pytest.mark.parametrize("quantity", ["weights", "signed", "scores", "weighted", "received", "rollout"])
@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"queries": "last", "layers": [1]},
        {"queries": [0], "keys": [0, -1, 0], "layers": [1, 0, 1], "heads": [3, 0, 0]},
        {"queries": "::-1", "keys": "::2", "heads": "1:3"},
        {"pairs": [[1, 3], [0, 0], [-1, 3]], "queries": "-2:"},
    ],
    ids=str,
)
def test_every_quantity_of_every_selection(ask, quantity, selection):
    check_maps(ask(quantity=quantity, **selection))


REDUCTIONS = [
    dict(zip(("layers", "heads", "queries"), words, strict=True))
    for words in product(("none", "mean", "max"), ("none", "mean", "min"), ("none", "mean", "sum"))
]


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=str)
@pytest.mark.parametrize("quantity", ["weights", "weighted"])
def test_maps_are_put_together(ask, quantity, reduce):
    check_maps(ask(quantity=quantity, reduce=reduce, queries=[0, -1], layers=[1, 0, 1]))


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("quantity", ["weights", "scores", "signed", "received", "rollout"])
def test_pairs_are_put_together(ask, quantity, heads):
    check_maps(ask(quantity=quantity, pairs=[[1, 3], [0, 0], [1, 3], [0, 1]], reduce={"heads": heads}))


TEXTS = ["the cat  at the cat", "a"]


@pytest.mark.parametrize("quantity", ["weights", "weighted", "received", "rollout"])
@pytest.mark.parametrize("reduce", [{}, {"heads": "max"}, {"heads": "mean"}], ids=str)
@pytest.mark.parametrize("selection", [{}, {"queries": [-1, 0], "keys": [1, 0]}], ids=str)
def test_words_are_looked_at_as_much_as_their_tokens_and_look_like_their_mean(ask, quantity, reduce, selection):
    check_maps(ask(TEXTS, quantity=quantity, reduce={**reduce, "tokens": "word"}, **selection))


@pytest.mark.parametrize("queries", ["mean", "sum"])
def test_words_and_then_queries(ask, queries):
    check_maps(ask(TEXTS, quantity="weights", reduce={"tokens": "word", "queries": queries, "heads": "max"}))


@pytest.mark.parametrize("special_tokens", ["drop", "drop_renormalise"])
@pytest.mark.parametrize("quantity", ["weights", "received", "rollout", "signed"])
def test_special_tokens_are_left_out(ask, quantity, special_tokens):
    question, *rest = ask(TEXTS, quantity=quantity, special_tokens=special_tokens)
    # The end is no row and no column.
    assert [len(keys) for keys in question.keys] == [len(truth.ids) - 1 for truth in rest[1]]
    check_maps((question, *rest))


NAMES = [
    *("entropy", "distance", "sink", "self", "previous_token", "duplicate_token", "induction"),
    *("mass", "special", "negative", "received"),
]


@however_added_up
@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"queries": "last"},
        {"queries": [0]},
        {"queries": [-1, 0, 0], "keys": [0], "layers": [1], "heads": [2, 0]},
        {"queries": "::-1"},
        {"pairs": [[1, 3], [0, 0]]},
        {"exclude_bos": True},
        {"exclude_current_token": True},
        {"exclude_bos": True, "exclude_current_token": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("sparse", [1, 10**6])
def test_every_measure_is_what_its_definition_says(ask, monkeypatch, selection, sparse):
    monkeypatch.setattr(extents, "SPARSE", sparse)
    check_measures(ask(diagnostics=NAMES, **selection))


@however_added_up
@pytest.mark.parametrize("special_tokens", ["keep", "drop", "drop_renormalise"])
def test_measures_with_and_without_special_tokens(ask, special_tokens):
    check_measures(ask(TEXTS, diagnostics=NAMES, special_tokens=special_tokens))


def check_measures(asked) -> None:
    question, arrays, truths, _ = asked
    places = list(product(question.layers, question.heads))
    if question.is_paired:
        places = list(zip(question.layers, question.heads, strict=True))
    for index, (by_name, truth) in enumerate(zip(arrays, truths, strict=True)):
        flat = {
            name: array.reshape(len(places), *array.shape[1 if question.is_paired else 2 :])
            for name, array in by_name.items()
        }
        for place, (layer, head) in enumerate(places):
            expected = slowly.measure(question, index, truth, layer, head)
            assert list(flat)[:2] == ["entropy_bits", "entropy_normalised"]
            assert flat.keys() == expected.keys()
            for name, array in flat.items():
                np.testing.assert_allclose(array[place], expected[name], **CLOSE, err_msg=name)


@however_added_up
def test_only_what_is_asked_for_is_measured_in_that_order(ask):
    _, arrays, *_ = ask(diagnostics=["self", "entropy", "self"])
    assert list(arrays[0]) == ["self", "entropy_bits", "entropy_normalised"]


@pytest.mark.parametrize("fields", [{"quantity": "weights"}, {"quantity": "received"}, {"diagnostics": NAMES}], ids=str)
def test_nothing_is_weighed_but_the_heads_and_rows_asked_for(ask, monkeypatch, fields):
    weighed = []
    weigh = Weighing.weigh

    def watch(self, layer, query, key, *, steps, heads, **options):
        for block in weigh(self, layer, query, key, steps=steps, heads=heads, **options):
            weighed.append((layer.captures["query"], list(heads), block.steps.tolist()))
            assert block.weights.shape[:2] == (len(heads), len(block.steps))
            yield block

    monkeypatch.setattr(Weighing, "weigh", watch)
    ask([[1, 2, 3, 1, 2]], pairs=[[1, 3], [1, 3], [0, 2], [1, 0]], queries=[-1, 0], **fields)
    assert weighed == [("layers.0.query", [2], [4, 0]), ("layers.1.query", [0, 3], [4, 0])]


@however_added_up
def test_zero_has_no_sign(ask):
    _, arrays, *_ = ask([[1]], diagnostics=["entropy", "distance", "negative"])
    for value in arrays[0].values():
        assert not np.signbit(value[~np.isnan(value)]).any()
    _, arrays, *_ = ask(quantity="signed")
    assert not np.signbit(arrays[0]["signed"][arrays[0]["signed"] == 0]).any()


@however_added_up
def test_heads_that_see_nothing_they_like(make_manifest, weighing, answer_randomly):
    # Every score is 0: an expressive row has no weights at all.
    manifest = make_manifest(layers=(make_layer(0, **{**EXPRESSIVE, "epsilon": 0.0}),))
    request = parse_attention(json.dumps({"sequences": [[1, 2]], "diagnostics": NAMES}).encode(), Reader(manifest))
    answers = answer_randomly(request, manifest)
    answers[0].captures["layers.0.query"][:] = 0
    (arrays,) = compute_arrays(weighing, manifest.layers, request, answers)
    assert np.isnan(arrays["induction"]).all()
    assert (arrays["entropy_bits"] == 0).all()
    assert (arrays["received"] == 0).all()


def test_redundancy_is_how_far_maps_are_from_each_other(ask):
    question, arrays, truths, _ = ask(diagnostics=["redundancy"], heads=[2, 0, 2], queries="::2")
    for index, truth in enumerate(truths):
        found = arrays[index]["head_distance"]
        assert found.shape == (2, 3, 3)
        for layer, (row, first), (column, second) in product(range(2), enumerate([2, 0, 2]), enumerate([2, 0, 2])):
            maps = truth.weights[layer][:, question.queries[index]]
            expected = math.sqrt(((maps[first] - maps[second]) ** 2).sum())
            assert found[layer, row, column] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("special_tokens", ["keep", "drop"])
def test_collapse_is_the_mean_cosine_of_the_residual_stream(ask, manifest, special_tokens):
    _, arrays, truths, answers = ask(TEXTS, diagnostics=["collapse"], layers=[1, 0, 1], special_tokens=special_tokens)
    for by_name, truth, answer in zip(arrays, truths, answers, strict=True):
        for place, layer in enumerate([1, 0, 1]):
            hidden = answer.captures[f"layers.{layer}.hidden"].astype(float)
            expected = slowly.mean_cosine(hidden[: truth.length - (special_tokens == "drop")])
            np.testing.assert_allclose(by_name["collapse"][place], expected, rtol=1e-5)
    _, arrays, *_ = ask(diagnostics=["collapse"], pairs=[[1, 0], [0, 1], [1, 2]])
    assert arrays[0]["collapse"].shape == (3,)
    assert arrays[0]["collapse"][0] == arrays[0]["collapse"][2] != arrays[0]["collapse"][1]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_keys": 3},
        {"top_keys": 100},
        {"min_weight": 0.2},
        {"top_keys": 2, "min_weight": 0.1, "queries": "last"},
        {"top_keys": 2, "keys": [-1, 0]},
        {"top_keys": 2, "reduce": {"heads": "max"}},
        {"top_keys": 2, "reduce": {"queries": "mean", "layers": "mean"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("quantity", ["weights", "weighted", "rollout"])
def test_the_largest_entries_of_a_row(ask, quantity, fields):
    if quantity == "rollout" and "reduce" in fields:
        fields = {**fields, "reduce": {"queries": "mean"}}
    question, arrays, truths, _ = ask(quantity=quantity, **fields)
    find = slowly.find_rollout if quantity == "rollout" else slowly.find_maps
    for index, (by_name, truth) in enumerate(zip(arrays, truths, strict=True)):
        whole = find(question, index, truth)
        keys = list(range(truth.length)) if question.keys is None else question.keys[index].tolist()
        kept, indices = by_name[quantity], by_name["indices"]
        assert kept.shape == indices.shape
        assert kept.shape[-1] <= min(len(keys), fields.get("top_keys", len(keys)))
        for place in np.ndindex(*whole.shape[:-1]):
            row = whole[place]
            wanted = sorted((value for value in row if value >= max(question.min_weight, 1e-12)), reverse=True)
            wanted = wanted[: fields.get("top_keys")]
            num = len(wanted)
            np.testing.assert_allclose(kept[place][:num], wanted, **CLOSE)
            assert (kept[place][num:] == 0).all()
            assert (indices[place][num:] == -1).all()
            found = [row[keys.index(key)] for key in indices[place][:num].tolist()]
            np.testing.assert_allclose(found, wanted, **CLOSE)
            share = sum(wanted) / row.sum() if row.sum() else math.nan
            np.testing.assert_allclose(by_name["kept_mass"][place], share, rtol=1e-4)


def test_a_metric_is_that_of_the_heads_asked_for(make_manifest, weighing, answer_randomly):
    dot = make_layer(0)
    del dot.captures["metric"]
    manifest = make_manifest(layers=(dot, make_layer(1, num_key_heads=2)))
    body = {"sequences": [[1, 2, 3]], "quantity": "metric", "heads": [3, 0], "queries": [2, 0]}
    request = parse_attention(json.dumps(body).encode(), Reader(manifest))
    answers = answer_randomly(request, manifest)
    (arrays,) = compute_arrays(weighing, manifest.layers, request, answers)
    # Layer 0 has none. Heads 3 and 0 read key heads 1 and 0.
    expected = answers[0].captures["layers.1.metric"][[2, 0]][:, [1, 0]].swapaxes(0, 1)
    assert list(arrays) == ["layers.1.metric"]
    np.testing.assert_array_equal(arrays["layers.1.metric"], expected)


def parse(manifest, how=parse_attention, **fields):
    return how(json.dumps({"sequences": [[1] * 100, [2] * 50], **fields}).encode(), Reader(manifest))


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, ["hidden", "key", "query"]),
        ({"diagnostics": ["collapse"]}, ["hidden"]),
        ({"diagnostics": ["importance"]}, []),
        # For the divergence of its rows.
        ({"diagnostics": ["importance"], "compare": {"sequences": [[3] * 100, [3] * 50]}}, ["key", "query"]),
        ({"diagnostics": ["sink"]}, ["key", "query"]),
        ({"quantity": "weighted"}, ["key", "query", "value_norm"]),
        ({"quantity": "metric"}, ["metric"]),
    ],
)
def test_no_more_is_captured_than_it_takes(make_manifest, fields, kinds):
    manifest = make_manifest()
    question = parse(manifest, layers=[1], **fields).attention
    assert sorted(captures_for(manifest, question)) == [f"layers.1.{kind}" for kind in kinds]


@pytest.mark.parametrize(
    ("fields", "num_values"),
    [
        # 2 layers x 4 heads x (100^2 + 50^2) weights, x 9 measures and 1 of layers, or x (1 measure and 150 keys).
        ({"quantity": "weights"}, 8 * 12_500),
        ({"quantity": "weights", "layers": [0, 0, 0], "heads": [1], "queries": "last"}, 3 * 150),
        ({"quantity": "diagnostics"}, (8 * 8 + 2) * 2),
        ({"quantity": "diagnostics", "diagnostics": ["self", "received"]}, 8 * (2 + 150)),
        ({"quantity": "diagnostics", "diagnostics": ["redundancy"]}, 8 * 4 * 2),
        ({"quantity": "weights", "top_keys": 3}, 8 * 150 * 7),
        ({"quantity": "weights", "min_weight": 0.3}, 8 * 150 * 7),
        ({"quantity": "weighted", "min_weight": 0.3}, 8 * (10_000 * 2 + 100 + 2_500 * 2 + 50)),
        ({"quantity": "rollout", "queries": [0, 1]}, 2 * 150),
        ({"quantity": "received", "keys": [0]}, 8 * 2),
        # Queries and keys of 8 channels, normalisers and norms of every step.
        ({"quantity": "qk", "layers": [1], "heads": [0]}, 150 * 18),
        ({"quantity": "weights", "queries": "last", "compare": {"sequences": [[3] * 100, [3] * 50]}}, 8 * (300 + 2)),
    ],
)
def test_the_size_of_an_answer(make_manifest, monkeypatch, fields, num_values):
    manifest = make_manifest()
    request = parse(manifest, **fields)
    check_size(request, manifest.layers, as_json=False, max_response_bytes=num_values * 4)
    with pytest.raises(TooLarge, match=f"this one needs {num_values * 4};"):
        check_size(request, manifest.layers, as_json=False, max_response_bytes=num_values * 4 - 1)
    monkeypatch.setattr("attnserve.service.attention.MAX_ENTRIES", num_values)
    check_size(request, manifest.layers, as_json=True, max_response_bytes=10**9)
    monkeypatch.setattr("attnserve.service.attention.MAX_ENTRIES", num_values - 1)
    with pytest.raises(TooLarge, match=rf"this one needs {num_values}; .* application/x-safetensors"):
        check_size(request, manifest.layers, as_json=True, max_response_bytes=10**9)


def test_float16_halves_weights_and_only_weights(make_manifest):
    manifest = make_manifest()
    half = parse(manifest, quantity="weights", dtype="float16")
    check_size(half, manifest.layers, as_json=False, max_response_bytes=8 * 12_500 * 2)
    with pytest.raises(TooLarge, match="needs 528;"):
        check_size(parse(manifest, dtype="float16"), manifest.layers, as_json=False, max_response_bytes=527)


def test_diagnostics_of_a_lot_are_work_too(make_manifest, monkeypatch):
    manifest = make_manifest()
    request = parse(manifest, heads=[0, 1] * 50)
    monkeypatch.setattr("attnserve.service.attention.MAX_WEIGHTS", 2 * 2 * 12_500)
    check_size(request, manifest.layers, as_json=True, max_response_bytes=10**9)
    monkeypatch.setattr("attnserve.service.attention.MAX_WEIGHTS", 2 * 2 * 12_500 - 1)
    with pytest.raises(TooLarge, match="at most 49999 weights are computed for one answer, this one needs 50000"):
        check_size(request, manifest.layers, as_json=True, max_response_bytes=10**9)


@pytest.mark.parametrize(
    ("fields", "num_weights"),
    [
        ({"quantity": "weights", "queries": "last"}, 8 * 150),
        # A rollout needs every row of the layers below.
        ({"quantity": "rollout", "queries": "last"}, 8 * 12_500),
        ({"quantity": "qk"}, 0),
        ({"diagnostics": ["collapse"]}, 0),
        ({"queries": "last", "compare": {"sequences": [[3] * 100, [3] * 50]}}, 4 * 8 * 150),
    ],
)
def test_the_work_of_an_answer(make_manifest, fields, num_weights):
    request = parse(make_manifest(), **fields)
    assert count_weights(request.attention, request.lengths) == num_weights


def test_what_is_cut_down_must_fit_before_it_is(make_manifest):
    manifest = make_manifest()
    request = parse(manifest, quantity="weights", top_keys=1, reduce={"heads": "max"}, layers=[0])
    check_size(request, manifest.layers, as_json=False, max_response_bytes=4 * 10_000)
    with pytest.raises(TooLarge, match="reduce: maps that are put together"):
        check_size(request, manifest.layers, as_json=False, max_response_bytes=4 * 10_000 - 1)


def test_the_importance_of_heads_has_a_limit(make_manifest, monkeypatch):
    manifest = make_manifest()
    request = parse(manifest, diagnostics=["importance"])
    monkeypatch.setattr("attnserve.service.attention.MAX_ABLATIONS", 16)
    check_size(request, manifest.layers, as_json=True, max_response_bytes=10**9)
    monkeypatch.setattr("attnserve.service.attention.MAX_ABLATIONS", 15)
    with pytest.raises(TooLarge, match=r"diagnostics: sequences x heads .* at most 15, got 16"):
        check_size(request, manifest.layers, as_json=True, max_response_bytes=10**9)


def test_memory_that_waits_for_its_answer(make_manifest):
    manifest = make_manifest()
    ids = 150 * 8
    assert held_bytes(parse(manifest, parse_predict), manifest) == ids + 2 * 10 * 4
    assert held_bytes(parse(manifest, parse_predict, positions="all"), manifest) == ids + 150 * 10 * 4
    # One layer's queries, keys and hidden rows of every step, 32 numbers each.
    assert held_bytes(parse(manifest, layers=[0, 0, -2]), manifest) == ids + (2 * 10 + 150 * 96) * 4
    # Logits without each of 8 heads, and without some.
    fields = {"diagnostics": ["importance"], "ablate": [[0, 0], [1, 1]]}
    assert held_bytes(parse(manifest, **fields), manifest) == ids + 10 * 2 * 10 * 4
    # What was said is kept until all is said.
    more = parse(make_manifest(max_length=107), parse_predict, **{"continue": 7})
    assert held_bytes(more, manifest) == ids + 2 * 10 * 4 + 2 * 7 * CONTINUED_BYTES


def test_features_wait_for_their_answer_too(make_manifest):
    manifest = make_manifest(vocabulary_size=None, num_features=3, task="classify_token", num_classes=2)
    asked = parse_predict(json.dumps({"sequences": [[[1, 2, 3]] * 5]}).encode(), Reader(manifest))
    assert held_bytes(asked, manifest) == 5 * 3 * 4 + 5 * 2 * 4
