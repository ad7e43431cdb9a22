"""When what failed is tried again."""

import pytest

from attnserve.service.failures import Failures

BEFORE, AFTER = (1, 2, 3), (1, 2, 4)


def test_delays_double_up_to_a_limit():
    failures, now, delays = Failures(), 100.0, []
    for _ in range(9):
        failures.add("a", 2, "damaged", BEFORE, now)
        delays.append(failures.by_name["a"].retry_at - now)
        now += 1000
    assert delays == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_hundreds_of_failures_are_no_overflow():
    failures = Failures()
    for _ in range(2000):
        failures.add("a", 2, "damaged", BEFORE, 0.0)
    assert failures.by_name["a"].retry_at == 600


def test_another_version_begins_anew():
    failures = Failures()
    for _ in range(5):
        failures.add("a", 2, "damaged", BEFORE, 0.0)
    failures.add("a", 3, "damaged", BEFORE, 0.0)
    assert failures.by_name["a"].retry_at == 10


@pytest.mark.parametrize(
    ("version", "fingerprint", "now", "is_over"),
    [(2, BEFORE, 9.9, False), (2, BEFORE, 10.0, True), (2, AFTER, 0.0, True), (3, BEFORE, 0.0, True), (2, (), 0, True)],
)
def test_over_when_files_or_versions_change_or_time_has_passed(version, fingerprint, now, is_over):
    failures = Failures()
    failures.add("a", 2, "damaged", BEFORE, 0.0)
    assert failures.by_name["a"].is_over(version, fingerprint, now) is is_over


def test_the_same_again_is_no_news():
    failures = Failures()
    assert failures.add("a", 2, "damaged", BEFORE, 0.0)
    assert not failures.add("a", 2, "damaged", BEFORE, 1.0)
    assert failures.add("a", 2, "missing", BEFORE, 2.0)
    assert failures.add("b", 2, "missing", BEFORE, 2.0)


def test_forgetting_leaves_others():
    failures = Failures()
    for name in "abc":
        failures.add(name, 1, "damaged", BEFORE, 0.0)
    held = failures.by_name
    failures.forget("b")
    assert sorted(failures.by_name) == ["a", "c"]
    failures.keep({"c", "d"})
    assert sorted(failures.by_name) == ["c"]
    # Whoever reads meanwhile reads what was.
    assert sorted(held) == ["a", "b", "c"]


def test_in_words():
    failures = Failures()
    failures.add("a", 3, "damaged", BEFORE, 0.0)
    failures.add("b", None, "aliases", (), 0.0)
    assert str(failures.by_name["a"]) == "version 3 cannot be served: damaged"
    assert str(failures.by_name["b"]) == "cannot be served: aliases"
