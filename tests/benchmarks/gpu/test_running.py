"""A part that crashes or takes too long, and what it had found."""

from benchmarks.gpu.findings import Finding
from benchmarks.gpu.running import read_findings, run_part

STAND_IN = "tests.benchmarks.gpu.stand_in"


def test_what_was_found_before_a_crash_is_kept(plan):
    outcome = run_part("crash", plan, 60, module=STAND_IN)
    assert outcome.findings == (Finding(cells={"device": "cpu"}),)
    assert outcome.cut == "it ended with exit code 7"
    assert outcome.failed


def test_a_part_that_comes_to_its_end(plan):
    outcome = run_part("end", plan, 60, module=STAND_IN)
    assert (outcome.verdict, outcome.cut) == ("passed", None)


def test_a_part_that_does_not_end_is_ended(plan):
    outcome = run_part("wait", plan, 0, module=STAND_IN)
    assert (outcome.findings, outcome.cut) == ((), "cut short after 0 s")
    assert outcome.failed


def test_half_a_line_is_not_read():
    assert read_findings('{"cells": {"a": "1"}}\n{"cells": {"b"') == [Finding(cells={"a": "1"})]
