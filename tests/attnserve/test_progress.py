"""Bars, where somebody looks at them."""

import pytest

from attnserve.progress import show_bytes, show_lines

LINE = {"step": "verify", "fraction": 0.75, "message": "replay"}


def test_a_bar_of_steps_moves(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []
    with show_lines(told.append, is_shown=True) as report:
        report(LINE)
    captured = capsys.readouterr()
    assert " 75%|" in captured.err
    assert "verify: replay" in captured.err
    assert not captured.out
    assert told == []


def test_without_a_bar_lines_go_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []
    with show_lines(told.append, is_shown=False) as report:
        report(LINE)
    assert told == [LINE]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_bar_of_bytes_is_there_or_not(capsys: pytest.CaptureFixture[str], is_shown: bool) -> None:
    with show_bytes("push mine", 2048, is_shown=is_shown) as report:
        report(1024)
    assert ("push mine" in capsys.readouterr().err) == is_shown
