"""Answers as JSON: every question that is allowed has one, with the numbers that the layout counted."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnserve.service.attention import check_size, compute_arrays
from attnserve.service.diagnostics import DIAGNOSTICS
from attnserve.service.entries import add_entries, describe_question
from attnserve.service.layout import lay_out
from attnserve.service.preprocess import parse_attention
from attnserve.service.problems import Invalid
from attnserve.service.question import QUANTITIES
from attnserve.service.sequences import Reader
from attnserve.text import TextReader
from tests.kinds import make_tokenizer
from tests.service.conftest import make_layer

EXPRESSIVE = {"variant": "expressive", "op": "ExpressiveAttention", "weighting": "expressive"}
TEXTS = ["the cat at", "a  cat\n"]


@pytest.fixture(scope="module")
def reader(make_manifest, tmp_path_factory) -> Reader:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(ended=True).save(str(path))
    manifest = make_manifest(layers=(make_layer(0), make_layer(1, **EXPRESSIVE, num_key_heads=2)), vocabulary_size=300)
    return Reader(manifest, TextReader(path))


def choices(*words):
    return st.sampled_from(words)


indices = choices("all", "1:", "::-1", "-1:") | st.lists(st.integers(-2, 1), min_size=1, max_size=3)
steps = choices("all", "last", "::2", {"span": [0, 3]}, {"token": "cat"}, [0, -1, 0])
pairs = st.lists(st.tuples(st.integers(-2, 1), st.integers(-4, 3)), min_size=1, max_size=3)
questions = st.fixed_dictionaries(
    {"quantity": st.sampled_from(QUANTITIES)},
    optional={
        "layers": indices,
        "heads": indices,
        "pairs": pairs,
        "queries": steps,
        "keys": steps,
        "special_tokens": choices("keep", "drop", "drop_renormalise"),
        "diagnostics": st.lists(st.sampled_from(sorted(set(DIAGNOSTICS) - {"importance"})), min_size=1, max_size=4),
        "reduce": st.fixed_dictionaries(
            {},
            optional={
                "layers": choices("mean", "max"),
                "heads": choices("mean", "min"),
                "queries": choices("mean", "sum"),
                "tokens": choices("word", "subword"),
            },
        ),
        "top_keys": st.integers(1, 4),
        "min_weight": choices(0.1, 0.5),
    },
)


def count_numbers(value) -> int:
    """Numbers, or nulls in their place, in lists."""
    if isinstance(value, list):
        return sum(count_numbers(item) for item in value)
    return int(value is None or isinstance(value, float))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(question=questions)
def test_every_question_that_is_allowed_has_an_answer(reader, weighing, answer_randomly, question):
    layers = reader.manifest.layers
    body = json.dumps({"sequences": TEXTS, **question}).encode()
    try:
        request = parse_attention(body, reader)
    except Invalid:
        assume(False)
    check_size(request, layers, as_json=True, max_response_bytes=1 << 20)
    asked = request.attention
    arrays = compute_arrays(weighing, layers, request, answer_randomly(request, reader.manifest))
    layout = lay_out(asked, layers, request.lengths)
    for by_name, tensors in zip(arrays, layout, strict=True):
        assert [(name, array.shape) for name, array in by_name.items()] == [(one.name, one.shape) for one in tensors]
        assert all(array.dtype == (np.int32 if name == "indices" else np.float32) for name, array in by_name.items())
    described = describe_question(request, layers, causal=True)
    document = json.loads(orjson.dumps(add_entries(described, asked, arrays), option=orjson.OPT_SERIALIZE_NUMPY))
    entries = [*document.get("diagnostics", []), *document.get("layer_diagnostics", []), *document.get("maps", [])]
    assert entries
    assert {entry["sequence"] for entry in entries} == {0, 1}
    if not asked.is_sparse and not asked.is_paired:
        labels = {"sequence", "layer", "head", "variant", "queries"}
        num_numbers = sum(
            count_numbers(value) for entry in entries for name, value in entry.items() if name not in labels
        )
        layered = {layer: asked.layers.count(layer) for layer in asked.layers}
        repeated = sum(count - 1 for count in layered.values()) * (asked.quantity == "diagnostics") * 2
        repeated *= "collapse" in asked.diagnostics
        assert num_numbers == sum(one.num_values for tensors in layout for one in tensors) - repeated


def test_rows_that_were_cut_down_have_no_filling(reader, weighing, answer_randomly):
    body = {"sequences": ["the cat"], "quantity": "weights", "queries": [0, -1], "top_keys": 3, "pairs": [[0, 0]]}
    request = parse_attention(json.dumps(body).encode(), reader)
    arrays = compute_arrays(weighing, reader.manifest.layers, request, answer_randomly(request, reader.manifest))
    (entry,) = add_entries(describe_question(request, reader.manifest.layers, causal=True), request.attention, arrays)[
        "maps"
    ]
    # The first row sees one key.
    assert [len(row) for row in entry["weights"]] == [len(row) for row in entry["keys"]] == [1, 3]
    assert entry["keys"][0] == [0]
    assert entry["kept_mass"][0] == pytest.approx(1)
    assert (entry["layer"], entry["head"]) == (0, 0)
