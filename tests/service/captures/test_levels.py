"""Levels: what captures of a model show, as settings say it."""

import pytest

from attnserve.service.captures.levels import LEVELS, MAPS, OFF, QK, level_of, parse_levels
from attnserve.service.guard import require_level
from attnserve.service.problems import Forbidden


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {}),
        (None, {}),
        ({}, {}),
        ("off", {"*": "off"}),
        ('{"a": "maps", "*": "off"}', {"a": "maps", "*": "off"}),
        ({"a": "qk"}, {"a": "qk"}),
    ],
)
def test_ways_to_say_it(given, expected):
    assert parse_levels(given) == expected


@pytest.mark.parametrize("given", ["on", "{", "[]", '"off"', '{"a": "all"}', '{"a": 1}', {"a": None}, 3, "[" * 100_000])
def test_other_words(given):
    with pytest.raises(ValueError, match="expected one of off, maps, qk") as caught:
        parse_levels(given)
    assert len(str(caught.value)) < 200


def test_the_models_own_word_counts():
    levels = {"a": MAPS, "*": OFF}
    assert [level_of(levels, name) for name in "ab"] == [MAPS, OFF]
    assert level_of({}, "a") == QK
    assert level_of({"b": OFF}, "a") == QK


@pytest.mark.parametrize("found", LEVELS)
@pytest.mark.parametrize("needed", [MAPS, QK])
def test_less_than_needed_is_refused(found, needed):
    allowed = LEVELS.index(found) >= LEVELS.index(needed)
    if allowed:
        require_level({"*": found}, "a", needed, "model")
        return
    with pytest.raises(Forbidden) as caught:
        require_level({"*": found}, "a", needed, "model")
    (fault,) = caught.value.faults
    assert fault.field == "model"
    assert f"--captures is {found}" in fault.message
