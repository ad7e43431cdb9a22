import pytest

from attnserve.models.recipes.summary import Measure, cell_of, markdown_table, summarise


@pytest.mark.parametrize(
    ("kind", "cells", "expected"),
    [
        ("outcome", ["1", "0.125", "0.99"], "99.0 (12.5 to 100.0)"),
        ("outcome", ["1"], "100.0"),
        ("share", ["0.5", "0.7"], "60.0 ± 14.1"),
        ("number", ["1.5", "", "2.5"], "2.000 ± 0.707"),
        ("steps", ["850", "", "650"], "750 (2 of 3)"),
        ("steps", ["", ""], "never (0 of 2)"),
        ("seconds", ["1.2", "3.4"], "2"),
        ("share", ["", ""], "-"),
    ],
)
def test_seeds_become_one_cell(kind: str, cells: list[str], expected: str) -> None:
    assert summarise(Measure(header="", column="", kind=kind), cells) == expected


def test_a_difference_is_taken_run_by_run() -> None:
    measure = Measure(header="", column="a", kind="number", minus="b")
    runs = [{"a": "3.5", "b": "3"}, {"a": "1.5", "b": "1"}, {"a": "", "b": "1"}]
    assert summarise(measure, [cell_of(measure, run) for run in runs]) == "0.500 ± 0.000"


def test_kinds_are_known() -> None:
    with pytest.raises(ValueError, match=r"^kind: expected"):
        Measure(header="", column="", kind="guess")


def test_tables_are_aligned() -> None:
    assert markdown_table(["", "clean, %"], [["a long name", "1"]]) == (
        "|             | clean, % |\n| ----------- | -------- |\n| a long name | 1        |\n"
    )
