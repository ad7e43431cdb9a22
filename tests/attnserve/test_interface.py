import re
from typing import Any

import pytest

from attnserve.interface import MAX_SIZE, POOLINGS, TASKS, Interface, check_choice

NEXT = {"task": "next_token", "max_length": 9, "vocabulary_size": 7}
TOKEN = {"task": "classify_token", "max_length": 9, "num_features": 3, "num_classes": 4}
SEQUENCE = {"task": "classify_sequence", "max_length": 9, "vocabulary_size": 7, "num_classes": 4, "pooling": "mean"}
FIRST = TOKEN | {"task": "classify_sequence", "pooling": "first", "leading_row": True}


@pytest.mark.parametrize(
    "fields",
    [
        NEXT,
        NEXT | {"labels": tuple("abcdefg")},
        TOKEN,
        TOKEN | {"labels": tuple("abcd")},
        TOKEN | {"num_features": None, "vocabulary_size": 2},
        FIRST,
        FIRST | {"leading_row": False},
        *(SEQUENCE | {"pooling": pooling} for pooling in POOLINGS),
        *(TOKEN | {"task": "classify_sequence", "pooling": pooling} for pooling in POOLINGS),
        NEXT | {"max_length": MAX_SIZE, "vocabulary_size": MAX_SIZE},
        NEXT | {"max_length": 1, "vocabulary_size": 1},
    ],
    ids=str,
)
def test_what_makes_sense_is_taken(fields: dict[str, Any]) -> None:
    interface = Interface(**fields)
    assert {name: getattr(interface, name) for name in fields} == fields


def test_a_leading_row_is_a_step_of_its_own() -> None:
    assert [Interface(**fields).max_steps for fields in (NEXT, FIRST)] == [9, 10]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            NEXT | {"task": "translate"},
            "task: expected one of next_token, classify_token, classify_sequence, got 'translate'",
        ),
        (NEXT | {"max_length": 0}, "max_length: expected an integer from 1 to 16777216, got 0"),
        (NEXT | {"max_length": MAX_SIZE + 1}, "max_length: expected an integer from 1 to 16777216, got 16777217"),
        (NEXT | {"vocabulary_size": 0}, "vocabulary_size: expected an integer from 1 to 16777216, got 0"),
        (TOKEN | {"num_features": -1}, "num_features: expected an integer from 1 to 16777216, got -1"),
        (TOKEN | {"num_classes": 0}, "num_classes: expected an integer from 1 to 16777216, got 0"),
        (
            NEXT | {"vocabulary_size": None},
            "vocabulary_size: expected either that or num_features, got neither",
        ),
        (TOKEN | {"num_features": None}, "vocabulary_size: expected either that or num_features, got neither"),
        (TOKEN | {"vocabulary_size": 7}, "vocabulary_size: expected either that or num_features, got both"),
        (
            NEXT | {"vocabulary_size": None, "num_features": 3},
            "task: next_token predicts ids and needs a vocabulary_size, got num_features",
        ),
        (NEXT | {"num_classes": 7}, "num_classes: next_token has its vocabulary; expected none, got 7"),
        (TOKEN | {"num_classes": None}, "num_classes: classify_token needs a number of classes, got none"),
        (SEQUENCE | {"num_classes": None}, "num_classes: classify_sequence needs a number of classes, got none"),
        (SEQUENCE | {"pooling": None}, "pooling: expected one of first, last, mean, got None"),
        (SEQUENCE | {"pooling": "max"}, "pooling: expected one of first, last, mean, got 'max'"),
        (NEXT | {"pooling": "last"}, "pooling: only classify_sequence pools; expected none, got 'last'"),
        (TOKEN | {"pooling": "mean"}, "pooling: only classify_sequence pools; expected none, got 'mean'"),
        (
            SEQUENCE | {"pooling": "first", "leading_row": True},
            "leading_row: only models that classify sequences of features have one, got true",
        ),
        (NEXT | {"max_length": "9"}, "max_length: expected int, got str '9'"),
        (NEXT | {"labels": "abcdefg"}, "labels: expected a list, got str 'abcdefg'"),
        (NEXT | {"labels": ("a", "b")}, "labels: expected 7 (vocabulary_size), got 2"),
        (TOKEN | {"labels": ()}, "labels: expected 4 (num_classes), got 0"),
        # As many as ids, but a classifier names its classes.
        (SEQUENCE | {"labels": tuple("abcdefg")}, "labels: expected 4 (num_classes), got 7"),
        (TOKEN | {"labels": tuple("abca")}, "labels: expected distinct names, got duplicates"),
        (
            TOKEN | {"labels": ("a", "\ud800", "b", "c")},
            "labels[1]: expected text that UTF-8 can encode, got '\\ud800'",
        ),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else None,
)
def test_what_no_model_could_be_is_refused_by_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Interface(**fields)


@pytest.mark.parametrize(("fields", "num_outputs"), [(NEXT, 7), (TOKEN, 4), (SEQUENCE, 4)], ids=TASKS)
def test_logits_are_one_per_class_or_id(fields: dict[str, Any], num_outputs: int) -> None:
    assert Interface(**fields).num_outputs == num_outputs


@pytest.mark.parametrize(
    ("fields", "has_rows", "step"),
    [(FIRST, True, 0), (SEQUENCE | {"pooling": "last"}, True, 4), (SEQUENCE, False, 0)],
    ids=["first", "last", "mean"],
)
def test_the_pooling_says_which_step_answers(fields: dict[str, Any], has_rows: bool, step: int) -> None:
    interface = Interface(**fields)
    assert interface.has_rows == has_rows
    assert interface.answer_step(5) == step
    assert interface.answer_step(1) == 0


@pytest.mark.parametrize("fields", [NEXT, TOKEN], ids=TASKS[:2])
def test_tasks_with_an_answer_per_step_are_told_which(fields: dict[str, Any]) -> None:
    assert Interface(**fields).has_rows


def test_a_choice_is_refused_by_its_field() -> None:
    check_choice("norm", "pre", ("pre", "post"))
    with pytest.raises(ValueError, match=r"^norm: expected one of pre, post, got 'rms'$"):
        check_choice("norm", "rms", ("pre", "post"))
