"""What counts as proven."""

import pytest

from benchmarks.gpu.findings import Finding, Outcome

GOOD = Finding(cells={"model": "m"})
BAD = Finding(cells={"model": "m"}, broken=("too far", "too late"))
UNJUDGED = Finding(cells={"model": "m"}, unjudged="no nvcc")


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (GOOD, "passed"),
        (BAD, "**failed**: too far; too late"),
        (UNJUDGED, "not judged: no nvcc"),
        # A law that is broken is, whatever else is not judged.
        (Finding(cells={}, broken=("no",), unjudged="a CPU"), "**failed**: no"),
    ],
)
def test_a_row(finding, verdict):
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("findings", "cut", "verdict", "failed"),
    [
        ((GOOD, UNJUDGED), None, "passed", False),
        ((UNJUDGED,), None, "not judged", False),
        ((GOOD, BAD), None, "**failed**", True),
        ((GOOD,), "cut short after 60 s", "**not whole**", True),
        ((GOOD, BAD), "cut short after 60 s", "**failed**", True),
        ((), None, "**nothing was found**", True),
    ],
)
def test_a_part(findings, cut, verdict, failed):
    outcome = Outcome(findings=findings, seconds=1.0, cut=cut)
    assert (outcome.verdict, outcome.failed) == (verdict, failed)
