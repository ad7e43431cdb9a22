"""What docs/checkpoint.md rules out is refused, by the package and by the reader of that page, and by its name."""

import copy
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from attnserve.models.attention.layer import AttentionConfig
from attnserve.models.checkpoint import CheckpointError, load_checkpoint
from attnserve.models.config import TransformerConfig
from attnserve.records import from_json
from tests.grid.configs import GRID
from tests.grid.covering import complete
from tests.grid.rules import FIELDS, RULES, Choice, Rule, document_of
from tests.reference import numpy_transformer

Document = dict[str, Any]

TOO_LARGE = 2**24 + 1
NO_SIZE = (0, -1, TOO_LARGE, 10**400, True, 1.0, "1", [1])
NO_NAME = ("", "other", 1, True, ["pre"])
NO_FLAG = (0, 1, None, "true")
NO_POSITIVE = (0, -0.5, math.nan, math.inf, True, "1", [1.0])
# Neither 0 nor a float32 number from 2**-126 up.
NO_FLOAT32 = (-0.5, 2.0**-127, 2.0**128, math.nan, math.inf, True, "1")
WRONG_VALUES = {
    "vocabulary_size": NO_SIZE,
    "num_features": NO_SIZE,
    "max_length": (*NO_SIZE, None),
    "width": (*NO_SIZE, None),
    "num_heads": (*NO_SIZE, None),
    "num_key_heads": NO_SIZE,
    "head_size": NO_SIZE,
    "num_classes": NO_SIZE,
    "format_version": (0, 2, None, "1", True),
    "task": (*NO_NAME, None),
    "pooling": NO_NAME,
    "positions": (*NO_NAME, None),
    "norm": (*NO_NAME, None),
    "activation": (*NO_NAME, None),
    "causal": NO_FLAG,
    "bias": NO_FLAG,
    "tied_embeddings": NO_FLAG,
    "rotary_base": (*NO_POSITIVE, None),
    "mlp_ratio": (*NO_POSITIVE, None, 1e300, 0.3),
    "norm_epsilon": (*NO_POSITIVE, None),
    "labels": ([], ["a"] * 2, "ab", [1], True),
    "attention": ([], [{}] * 1025, {}, None, [None], ["dot_product"]),
}
WRONG_VALUES_OF_A_LAYER = {
    "variant": (*NO_NAME, None),
    "scale": (0, *NO_FLOAT32),
    "epsilon": (*NO_FLOAT32, None),
    "window": (-1, 2**31, 1.0, True, None, "1"),
    "softcap": (*NO_FLOAT32, None),
    "scope": NO_NAME,
    "scaling": NO_NAME,
}


def broken_rules() -> list[Any]:
    """For every rule that a file can break, and every way to: a choice that breaks it, and as few others as can be."""
    draw = random.Random(0)
    cases = []
    for rule in RULES:
        if rule.named is None:
            continue
        for values in itertools.product(*(FIELDS[field] for field in rule.fields)):
            if rule.holds(*values):
                continue
            fixed = dict(zip(rule.fields, values, strict=True))
            choice = complete(fixed, draw, rules=rules_without(rule, fixed))
            # There is none for a layer that is not there.
            if choice is not None:
                words = [f"{name}={value}" for name, value in fixed.items()]
                cases.append(pytest.param(choice, id=" ".join([rule.named, *words])))
    return cases


def rules_without(broken: Rule, fixed: Choice) -> list[Rule]:
    """Nor with those that the fixed values break by themselves."""
    others = [rule for rule in RULES if rule is not broken]
    return [rule for rule in others if rule.named is None or not set(rule.fields) <= set(fixed) or rule.allows(fixed)]


def names_of(choice: Choice) -> set[str]:
    """Whichever of them a message begins with, it is right."""
    return {rule.named for rule in RULES if rule.named is not None and not rule.allows(choice)}


def wrong_values() -> list[Any]:
    """Every field with a value that it can never have, in a config of the grid in which it has one."""
    cases = []
    documents = itertools.cycle([document_of(choice) for choice in GRID.values()])
    for field, values in WRONG_VALUES.items():
        for value in values:
            document = copy.deepcopy(next(it for it in documents if it.get(field, 1) is not None))
            document[field] = value
            cases.append(pytest.param(document, field, id=f"{field}={value!r:.20}"))
    for field, values in WRONG_VALUES_OF_A_LAYER.items():
        for value in values:
            document = copy.deepcopy(next(it for it in documents if has_use_for(field, it["attention"][-1])))
            layer = len(document["attention"]) - 1
            document["attention"][layer][field] = value
            cases.append(pytest.param(document, f"attention[{layer}].{field}", id=f"attention.{field}={value!r:.20}"))
    return cases


def has_use_for(field: str, layer: Document) -> bool:
    needed = {"epsilon": "expressive", "scope": "elliptical", "scaling": "elliptical"}
    return needed.get(field, layer["variant"]) == layer["variant"]


def wrong_labels() -> list[Any]:
    """Too few, too many, twice the same, and what UTF-8 cannot encode."""
    cases = []
    for name, choice in GRID.items():
        document = document_of(choice)
        if (labels := document["labels"]) is None:
            continue
        for kind, wrong in {
            "too few": labels[:-1],
            "too many": [*labels, "more"],
            "twice": [labels[0], *labels[:-1]],
            "half a pair": ["\ud800", *labels[1:]],
        }.items():
            # One name alone is never twice the same.
            if wrong != labels:
                cases.append(pytest.param({**document, "labels": wrong}, id=f"{name} {kind}"))
    return cases


def assert_refused(document: Document, names: set[str], folder: Path) -> None:
    """By `from_json`, as a file by `load_checkpoint`, and by the reader of the page."""
    with pytest.raises(ValueError, match=": ") as refused:
        from_json(TransformerConfig, document)
    assert begins_with(str(refused.value), names)
    file = folder / "config.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(folder)
    message = str(refused.value)
    assert message.startswith(f"{file}: ")
    assert begins_with(message.removeprefix(f"{file}: "), names)
    with pytest.raises(ValueError, match=r"\w"):
        numpy_transformer.load(folder)


def config_of(document: Document) -> TransformerConfig:
    """As Python makes one."""
    layers = tuple(AttentionConfig(**layer) for layer in document["attention"])
    labels = None if document["labels"] is None else tuple(document["labels"])
    return TransformerConfig(**{**document, "attention": layers, "labels": labels})


def begins_with(message: str, names: set[str]) -> bool:
    """A path in `names` comes first, or one within it."""
    return message.startswith(tuple(f"{name}{end}" for name in names for end in ":["))


@pytest.mark.parametrize("choice", broken_rules())
def test_what_fields_may_not_be_together_is_refused_by_name(choice: Choice, tmp_path: Path) -> None:
    document = document_of(choice)
    names = names_of(choice)
    assert_refused(document, names, tmp_path)
    # In Python a layer is refused when it is made, by a message that cannot know where it will stand.
    with pytest.raises(ValueError, match=": ") as refused:
        config_of(document)
    assert begins_with(str(refused.value), names | {name.rpartition("].")[2] for name in names})


@pytest.mark.parametrize(("document", "name"), wrong_values())
def test_what_a_field_can_never_be_is_refused_by_name(document: Document, name: str, tmp_path: Path) -> None:
    assert_refused(document, {name}, tmp_path)


@pytest.mark.parametrize("document", wrong_labels())
def test_wrong_labels_are_refused_by_name(document: Document, tmp_path: Path) -> None:
    assert_refused(document, {"labels"}, tmp_path)


@pytest.mark.parametrize("field", ["max_length", "width", "num_heads", "attention"])
def test_what_is_required_is_missed_by_name(field: str, tmp_path: Path) -> None:
    for document in map(document_of, GRID.values()):
        del document[field]
        assert_refused(document, {field}, tmp_path)


def test_what_no_page_lists_is_refused_by_name(tmp_path: Path) -> None:
    for document in map(document_of, GRID.values()):
        assert_refused({**document, "dropout": 0.1}, {"dropout"}, tmp_path)
        layers = [*document["attention"][:-1], {**document["attention"][-1], "alibi": True}]
        assert_refused({**document, "attention": layers}, {f"attention[{len(layers) - 1}].alibi"}, tmp_path)


def test_every_name_was_seen_alone() -> None:
    """A rule that is only ever broken with others could be another's refusal."""
    alone = {names.pop() for case in broken_rules() if len(names := names_of(case.values[0])) == 1}
    assert alone == {rule.named for rule in RULES if rule.named is not None}


def test_the_rules_refuse_what_the_package_refuses() -> None:
    """Both ways: a rule too many would leave legal pairs out of the grid without a word."""
    draw = random.Random(1)
    num_legal = 0
    for _ in range(600):
        choice = dict(draw.choice(list(GRID.values())))
        for field in draw.sample(list(FIELDS), draw.choice([1, 1, 2, 3])):
            choice[field] = draw.choice(FIELDS[field])
        if any(rule.named is None and not rule.allows(choice) for rule in RULES):
            continue
        if names_of(choice):
            with pytest.raises(ValueError, match=": ") as refused:
                from_json(TransformerConfig, document_of(choice))
            assert begins_with(str(refused.value), names_of(choice))
        else:
            from_json(TransformerConfig, document_of(choice))
            num_legal += 1
    assert num_legal > 150
