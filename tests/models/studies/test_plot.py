import dataclasses
from pathlib import Path

import matplotlib
import pytest

from attnserve.models.studies.plot import draw
from attnserve.models.studies.study import Cell, Study


@pytest.mark.parametrize("is_connected", [False, True])
def test_the_same_numbers_are_the_same_bytes(study: Study, tmp_path: Path, is_connected: bool) -> None:
    figure = dataclasses.replace(study.figures[0], is_connected=is_connected)
    for name, values in {"a": [0.5, 1.0], "b": [0.5, 1.0], "c": [0.5, 0.9]}.items():
        draw(figure, lambda _, values=values: values, tmp_path / f"{name}.svg")  # type: ignore[misc]

    first, second, other = ((tmp_path / f"{name}.svg").read_text("utf-8") for name in "abc")
    assert first == second
    assert first != other
    assert "dc:date" not in first
    for text in ("expressive", "dot-product", "accuracy, %", "(3, 2)", "Small models"):
        assert f">{text}<" in first, "text is text"


def test_settings_of_the_user_change_nothing(study: Study, tmp_path: Path) -> None:
    def values_of(_: Cell) -> list[float]:
        return [0.1, 0.2]

    draw(study.figures[0], values_of, tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        draw(study.figures[0], values_of, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
