import dataclasses
import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.interface import POOLINGS, TASKS
from attnserve.models import AttentionConfig, TransformerConfig, layers_of
from attnserve.models.attention.elliptical import SCALINGS
from attnserve.models.config import ACTIVATIONS, NORMS, POSITIONS
from attnserve.models.transformer import ACTIVATIONS as FUNCTIONS
from attnserve.records import from_json, to_json

DOT_PRODUCT = AttentionConfig()
TOKEN = {"task": "classify_token", "num_classes": 3}
FEATURES = {"vocabulary_size": None, "num_features": 2}
SEQUENCE = {"task": "classify_sequence", "num_classes": 3, "pooling": "mean"}


def config(**changes: Any) -> TransformerConfig:
    fields = {"vocabulary_size": 7, "max_length": 9, "width": 8, "num_heads": 2, "attention": (DOT_PRODUCT,)}
    return TransformerConfig(**(fields | changes))


def elliptical(scope: str) -> AttentionConfig:
    return AttentionConfig(variant="elliptical", scope=scope, scaling="max")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version: this release reads 1, got 2"),
        (
            {"task": "translate"},
            "task: expected one of next_token, classify_token, classify_sequence, got 'translate'",
        ),
        (
            {"positions": "alibi"},
            "positions: expected one of orthogonal, learned, sinusoidal, rotary, none, got 'alibi'",
        ),
        ({"norm": "rms"}, "norm: expected one of pre, post, got 'rms'"),
        ({"activation": "tanh"}, "activation: expected one of gelu, gelu_tanh, relu, silu, got 'tanh'"),
        ({"vocabulary_size": 0}, "vocabulary_size: expected an integer from 1 to 16777216, got 0"),
        ({"max_length": -1}, "max_length: expected an integer from 1 to 16777216, got -1"),
        ({"width": 0}, "width: expected an integer from 1 to 16777216, got 0"),
        ({"num_heads": 0}, "num_heads: expected an integer from 1 to 16777216, got 0"),
        ({"max_length": 2**24 + 1}, "max_length: expected an integer from 1 to 16777216, got 16777217"),
        ({"width": 10**400}, "width: expected an integer from 1 to 16777216, got 1000"),
        ({"num_heads": 3}, "num_heads: expected a divisor of width 8 (or a head_size), got 3"),
        ({"num_key_heads": 0}, "num_key_heads: expected an integer from 1 to 16777216, got 0"),
        ({"num_heads": 4, "num_key_heads": 3}, "num_key_heads: expected a divisor of num_heads 4, got 3"),
        ({"num_key_heads": 4}, "num_key_heads: expected a divisor of num_heads 2, got 4"),
        ({"head_size": 0}, "head_size: expected an integer from 1 to 16777216, got 0"),
        ({"head_size": 2**23 + 1}, "head_size: times num_heads 2 may be at most 16777216, got 8388609"),
        ({"vocabulary_size": None}, "vocabulary_size: expected either that or num_features, got neither"),
        ({"num_features": 3}, "vocabulary_size: expected either that or num_features, got both"),
        ({"vocabulary_size": None, "num_features": 0}, "num_features: expected an integer from 1 to 16777216, got 0"),
        ({"vocabulary_size": None, "num_features": 3}, "task: next_token predicts ids and needs a vocabulary_size"),
        ({"num_classes": 3}, "num_classes: next_token has its vocabulary; expected none, got 3"),
        ({"task": "classify_token"}, "num_classes: classify_token needs a number of classes, got none"),
        (TOKEN | {"num_classes": 0}, "num_classes: expected an integer from 1 to 16777216, got 0"),
        (TOKEN | {"pooling": "mean"}, "pooling: only classify_sequence pools; expected none, got 'mean'"),
        (SEQUENCE | {"pooling": None}, "pooling: expected one of first, last, mean, got None"),
        (SEQUENCE | {"pooling": "max"}, "pooling: expected one of first, last, mean, got 'max'"),
        (
            SEQUENCE | {"pooling": "first"},
            "pooling: in a causal model the first step sees nothing else; expected last or mean",
        ),
        (TOKEN | {"tied_embeddings": True}, "tied_embeddings: classify_token has no unembedding; expected false"),
        (SEQUENCE | {"tied_embeddings": True}, "tied_embeddings: classify_sequence has no unembedding"),
        (TOKEN | {"labels": tuple("abcdefg")}, "labels: expected 3 (num_classes), got 7"),
        ({"rotary_base": 0.0}, "rotary_base: expected a finite number > 0, got 0.0"),
        ({"mlp_ratio": math.inf}, "mlp_ratio: expected a finite number > 0, got inf"),
        ({"mlp_ratio": 0.3}, "mlp_ratio: times width 8 must be an integer from 1 to 16777216, got 0.3"),
        ({"mlp_ratio": 1e300}, "mlp_ratio: times width 8 must be an integer from 1 to 16777216, got 1e+300"),
        ({"mlp_ratio": 2.0**22}, "mlp_ratio: times width 8 must be an integer from 1 to 16777216, got 4194304.0"),
        ({"norm_epsilon": math.nan}, "norm_epsilon: expected a finite number > 0, got nan"),
        ({"positions": "rotary", "width": 6}, "positions: rotary needs an even head size, got 3"),
        ({"positions": "rotary", "head_size": 5}, "positions: rotary needs an even head size, got 5"),
        ({"labels": ("a", "b")}, "labels: expected 7 (vocabulary_size), got 2"),
        ({"labels": tuple("abcdefa")}, "labels: expected distinct names, got duplicates"),
        ({"labels": ("a", "\ud800", *"bcdef")}, "labels[1]: expected text that UTF-8 can encode, got '\\ud800'"),
        ({"attention": ()}, "attention: expected 1 to 1024 entries, one per layer, got 0"),
        ({"attention": (AttentionConfig(),) * 1025}, "attention: expected 1 to 1024 entries, one per layer, got 1025"),
        ({"attention": (elliptical("prefix"),)}, "attention[0].variant: elliptical attention needs the values"),
        (
            {"attention": (DOT_PRODUCT, elliptical("sequence"))},
            "attention[1].scope: 'sequence' lets a causal model see",
        ),
        ({"attention": (DOT_PRODUCT, elliptical("future"))}, "attention[1].scope: expected one of sequence, prefix"),
        (
            {"attention": (DOT_PRODUCT, elliptical("prefix")), "causal": False},
            "attention[1].scope: a bidirectional model sees the whole sequence; expected 'sequence', got 'prefix'",
        ),
        (
            {"attention": (DOT_PRODUCT, elliptical("sequence-leaky")), "causal": False},
            "attention[1].scope: a bidirectional model sees the whole sequence",
        ),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else str(value),
)
def test_combinations_that_make_no_sense_are_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        config(**changes)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TransformerConfig)])
def test_every_field_of_another_type_is_refused_by_name(field: str) -> None:
    # Sets are nothing JSON could hold, so no field takes one.
    with pytest.raises(ValueError, match=f"^{field}: expected .*, got set"):
        from_json(TransformerConfig, to_json(config()) | {field: {1}})


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(TransformerConfig) if "int" in str(field.type)]
)
@pytest.mark.parametrize("value", [True, 1.0, "1"], ids=repr)
def test_what_only_looks_like_an_integer_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected int, got {type(value).__name__} "):
        from_json(TransformerConfig, to_json(config()) | {field: value})


def test_an_integer_is_a_number() -> None:
    read = from_json(TransformerConfig, to_json(config()) | {"mlp_ratio": 2})
    assert read.mlp_ratio == 2.0
    assert isinstance(read.mlp_ratio, float)


@pytest.mark.parametrize("field", ["max_length", "width", "num_heads", "attention"])
def test_a_required_field_is_missed_by_name(field: str) -> None:
    document = to_json(config())
    del document[field]
    with pytest.raises(ValueError, match=f"^{field}: missing$"):
        from_json(TransformerConfig, document)


def test_an_unknown_field_is_refused_by_its_path() -> None:
    with pytest.raises(ValueError, match=r"^dropout: unknown field"):
        from_json(TransformerConfig, to_json(config()) | {"dropout": 0.1})
    with pytest.raises(ValueError, match=r"^attention\[0\].alibi: unknown field"):
        from_json(TransformerConfig, to_json(config()) | {"attention": [{"alibi": True}]})


def test_a_default_scale_is_written_down() -> None:
    resolved = config(width=32, attention=(DOT_PRODUCT, AttentionConfig(scale=1.0)))
    assert [layer.scale for layer in resolved.attention] == [0.25, 1.0]
    assert [layer["scale"] for layer in to_json(resolved)["attention"]] == [0.25, 1.0]


def test_sizes_follow_from_the_fields() -> None:
    sizes = config(width=24, num_heads=3, mlp_ratio=8 / 3, attention=(DOT_PRODUCT,) * 5)
    assert (sizes.num_layers, sizes.head_size, sizes.mlp_size) == (5, 8, 64)


@pytest.mark.parametrize(
    ("changes", "resolved"),
    [
        ({"width": 12, "num_heads": 3}, {"head_size": 4, "num_key_heads": 3}),
        ({"num_heads": 4, "num_key_heads": 2}, {"head_size": 2, "num_key_heads": 2}),
        # Heads and width need not have to do with each other.
        ({"num_heads": 3, "head_size": 5, "num_key_heads": 1}, {"head_size": 5, "num_key_heads": 1}),
    ],
    ids=str,
)
def test_defaults_are_resolved_and_written_down(changes: dict[str, Any], resolved: dict[str, int]) -> None:
    made = config(**changes)
    written = to_json(made)
    assert {name: written[name] for name in resolved} == resolved
    assert {"head_size": made.channels, "num_key_heads": made.key_heads} == resolved
    assert written["attention"][0]["scale"] == 1 / math.sqrt(resolved["head_size"])
    assert from_json(TransformerConfig, json.loads(json.dumps(written))) == made


@pytest.mark.parametrize(
    ("changes", "leading_row", "num_outputs"),
    [
        ({}, False, 7),
        (TOKEN, False, 3),
        (SEQUENCE | {"pooling": "first", "causal": False}, False, 3),
        (SEQUENCE | FEATURES | {"pooling": "first", "causal": False}, True, 3),
        (SEQUENCE | FEATURES, False, 3),
        (SEQUENCE | FEATURES | {"pooling": "last"}, False, 3),
        (TOKEN | FEATURES, False, 3),
    ],
    ids=str,
)
def test_the_interface_is_that_of_the_fields(changes: dict[str, Any], leading_row: bool, num_outputs: int) -> None:
    made = config(**changes)
    interface = made.interface
    for field in ("task", "max_length", "vocabulary_size", "num_features", "num_classes", "pooling", "labels"):
        assert getattr(interface, field) == getattr(made, field)
    assert (interface.leading_row, interface.num_outputs) == (leading_row, num_outputs)
    # The leading row is not one of the steps that are sent, but it has a position.
    assert made.num_positions == 9 + leading_row


def test_activations_are_the_functions_there_are() -> None:
    assert tuple(FUNCTIONS) == ACTIVATIONS


def test_layers_of_a_variant_begin_with_the_layer_it_needs() -> None:
    assert [layer.variant for layer in layers_of("expressive", 3)] == ["expressive"] * 3
    layers = layers_of("elliptical", 3, scope="prefix", scaling="mean")
    assert [layer.variant for layer in layers] == ["dot_product", "elliptical", "elliptical"]
    assert config(attention=layers).num_layers == 3


positive = st.floats(1e-3, 1e3)


def layer_documents(**own: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Entries of `attention`: any part of the attributes all variants have, and their own."""
    common = {"window": st.integers(0, 99), "softcap": st.just(0.0) | positive, "scale": st.none() | positive}
    return st.fixed_dictionaries(own, optional=common)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """JSON of legal configs. Not the configs: their type checks draw random numbers, which strategies must not."""
    causal = draw(st.booleans())
    layer = layer_documents(variant=st.just("dot_product")) | layer_documents(
        variant=st.just("expressive"), epsilon=st.just(0.0) | positive
    )
    metric_layer = layer_documents(
        variant=st.just("elliptical"),
        scope=st.sampled_from(("prefix", "sequence-leaky") if causal else ("sequence",)),
        scaling=st.sampled_from(SCALINGS),
    )
    num_heads = draw(st.integers(1, 8))
    names = st.text(st.characters(exclude_categories=["Cs"]))
    optional = {
        "positions": st.sampled_from(POSITIONS),
        "rotary_base": positive,
        "mlp_ratio": st.integers(1, 8),
        "activation": st.sampled_from(ACTIVATIONS),
        "norm": st.sampled_from(NORMS),
        "bias": st.booleans(),
        "norm_epsilon": positive,
        "num_key_heads": st.sampled_from([count for count in range(1, 9) if num_heads % count == 0]),
        "head_size": st.integers(1, 8).map(lambda half: 2 * half),
        "labels": st.none() | st.lists(names, min_size=4, max_size=4, unique=True),
    }
    if (task := draw(st.sampled_from(TASKS))) == "next_token":
        answers = {"vocabulary_size": 4, "task": task, "tied_embeddings": draw(st.booleans())}
    else:
        reads = draw(st.sampled_from(["vocabulary_size", "num_features"]))
        answers = {reads: draw(st.integers(1, 9)), "task": task, "num_classes": 4}
    if task == "classify_sequence":
        answers["pooling"] = draw(st.sampled_from(("last", "mean") if causal else POOLINGS))
    return draw(st.fixed_dictionaries({}, optional=optional)) | {
        **answers,
        "max_length": draw(st.integers(1, 10**6)),
        "width": num_heads * 2 * draw(st.integers(1, 8)),
        "num_heads": num_heads,
        "attention": [draw(layer), *draw(st.lists(layer | metric_layer, max_size=3))],
        "causal": causal,
    }


@settings(deadline=None, derandomize=True)
@given(documents())
def test_a_config_survives_json(document: dict[str, Any]) -> None:
    read = from_json(TransformerConfig, document)
    written = to_json(read)
    assert from_json(TransformerConfig, json.loads(json.dumps(written))) == read
    assert written.keys() == {field.name for field in dataclasses.fields(TransformerConfig)}
    assert all(written[name] == value for name, value in document.items() if name != "attention")
    for layer, asked in zip(written["attention"], document["attention"], strict=True):
        assert all(layer[name] == value for name, value in asked.items() if value is not None)


def test_types_are_those_of_the_file() -> None:
    """What Python accepts can be saved and read again. In a process without the type hooks of these tests."""
    code = """
from attnserve.interface import POOLINGS, TASKS
from attnserve.models import AttentionConfig, Transformer, TransformerConfig, layers_of

sound = {"vocabulary_size": 8, "max_length": 8, "width": 4, "num_heads": 1, "attention": (AttentionConfig(),)}
model = Transformer(TransformerConfig(**sound))
for wrong in (
    lambda: TransformerConfig(**{**sound, "max_length": 32.0}),
    lambda: TransformerConfig(**{**sound, "vocabulary_size": True}),
    lambda: TransformerConfig(**{**sound, "causal": 1}),
    lambda: TransformerConfig(**{**sound, "bias": None}),
    lambda: TransformerConfig(**{**sound, "labels": tuple(range(8))}),
    lambda: TransformerConfig(**{**sound, "num_features": 2.0}),
    lambda: TransformerConfig(**{**sound, "num_key_heads": True}),
    lambda: TransformerConfig(**{**sound, "head_size": "4"}),
    lambda: TransformerConfig(**{**sound, "tied_embeddings": 1}),
    lambda: TransformerConfig(**{**sound, "task": "classify_sequence", "num_classes": 2, "pooling": 3}),
    lambda: TransformerConfig(**{**sound, "attention": ["expressive"]}),
    lambda: layers_of("expressive", 1, window=2.5),
    lambda: model.predict([1, 2]),
    lambda: model.predict([[1.5]]),
    lambda: model.predict([[True]]),
):
    try:
        wrong()
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "max_length: expected int, got float 32.0",
        "vocabulary_size: expected int, got bool True",
        "causal: expected bool, got int 1",
        "bias: expected bool, got NoneType None",
        "labels[0]: expected str, got int 0",
        "num_features: expected int, got float 2.0",
        "num_key_heads: expected int, got bool True",
        "head_size: expected int, got str '4'",
        "tied_embeddings: expected bool, got int 1",
        "pooling: expected str, got int 3",
        "attention[0]: expected an object, got str 'expressive'",
        "window: expected int, got float 2.5",
        "sequences[0]: expected a list of 1 to 8 ids, got shape []",
        "sequences[0]: expected integers from 0 to 7, got others",
        "sequences[0]: expected integers from 0 to 7, got others",
    ], done.stderr


def test_a_model_has_layers() -> None:
    with pytest.raises(ValueError, match=r"^num_layers: expected an integer >= 1, got 0"):
        layers_of("expressive", 0)
