"""Laws that several scenarios share break when they should."""

import pytest

from soak.verdict import Report, check_growth, check_zero, format_report, percent_change, show


def test_percent_change():
    assert percent_change(200, 210) == pytest.approx(5)
    assert percent_change(200, 150) == pytest.approx(-25)
    with pytest.raises(ValueError, match="expected a number > 0, got 0"):
        percent_change(0, 10)


@pytest.mark.parametrize(
    ("before", "after", "scale", "is_broken"),
    [
        (100, 105, 1, False),
        (100, 105.1, 1, True),
        (100, 300, 2, True),
        (100, 50, 1, False),
        # A trial says nothing.
        (100, 300, 0.99, False),
    ],
)
def test_growth(before, after, scale, is_broken):
    assert bool(check_growth("memory", before, after, most_percent=5, scale=scale)) == is_broken


def test_growth_is_told_in_words():
    assert check_growth("memory", 100, 112.34, most_percent=5, scale=1) == ["memory grew by 12.3 %, at most 5 % may be"]


def test_zero():
    assert check_zero("faults", 0, "never shown") == []
    assert check_zero("faults", 3) == ["3 faults"]
    assert check_zero("faults", 3, "this") == ["3 faults, such as: this"]


def test_a_report_says_whether_it_passed():
    assert format_report("one", Report(figures={"answers": 12345, "ms": 1.23456}, broken=[])).splitlines() == [
        "PASSED one",
        "  answers: 12,345",
        "  ms: 1.23",
    ]
    assert format_report("one", Report(figures={}, broken=["3 faults"])).splitlines() == ["FAILED one", "  !! 3 faults"]


def test_figures_are_short():
    assert [show(value) for value in (1234567, 12.345, 0.001234, "text")] == ["1,234,567", "12.3", "0.00123", "text"]
