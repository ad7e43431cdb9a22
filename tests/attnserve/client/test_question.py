"""Every field of a question is a keyword, and becomes what the routes read."""

from typing import get_args, get_type_hints

import numpy as np
import pytest

from attnserve.client.question import Quantity, Question, to_json, to_parameters
from attnserve.service.question import FIELDS, QUANTITIES


def test_keywords_are_the_fields_of_the_route() -> None:
    # `Client.plan` is the dry run.
    assert get_type_hints(Question).keys() == set(FIELDS) - {"dry_run"}
    assert set(get_args(Quantity)) == set(QUANTITIES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("last", "last"),
        ("2:5", "2%3A5"),
        ([0, -1], "0%2C-1"),
        ((1,), "1"),
        (np.array([2, 3]), "2%2C3"),
        ([np.int64(2), np.int64(3)], "2%2C3"),
        (range(2), "0%2C1"),
        (["entropy", "sink"], "entropy%2Csink"),
        (7, "7"),
        (0.25, "0.25"),
        (True, "true"),
        ({"token": "cat"}, "%7B%22token%22%3A+%22cat%22%7D"),
        ([(0, 1), (2, 3)], "%5B%5B0%2C+1%5D%2C+%5B2%2C+3%5D%5D"),
    ],
)
def test_a_value_in_a_url(value: object, text: str) -> None:
    assert to_parameters({"field": value}) == f"?field={text}"


def test_what_is_not_given_is_not_there() -> None:
    assert to_parameters({"a": None, "b": "x"}) == "?b=x"
    assert to_parameters({}) == ""


class Tensor:
    """As PyTorch's: a list of itself."""

    def tolist(self) -> list[float]:
        return [1.0, 2.0]


def test_lists_of_every_library_are_lists() -> None:
    value = {"sequences": [np.array([1, 2]), Tensor(), range(2)], "version": np.int64(1)}
    assert to_json("compare", value) == {"sequences": [[1, 2], [1.0, 2.0], [0, 1]], "version": 1}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, float("nan")], "field: expected finite numbers, got nan"),
        (np.array([[np.inf]]), "field: expected finite numbers, got inf"),
        (slice(2), "field: expected numbers, texts, lists or arrays, got slice"),
        ([b"text"], "field: expected numbers, texts, lists or arrays, got bytes"),
        ({"a": {1}}, "field.a: expected numbers, texts, lists or arrays, got set"),
    ],
    ids=str,
)
def test_what_json_has_not_is_named(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        to_json("field", value)
