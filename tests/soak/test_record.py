"""The command: its exit code, and the table it fills in."""

import json

import pytest

from soak.__main__ import SCENARIOS, main
from soak.record import BEGIN, END, Circumstances, replace_rows
from soak.verdict import Report

PASSED = Report(figures={"answers": 1000, "ms": 1.5}, broken=[])
FAILED = Report(figures={"answers": 7}, broken=["3 failed requests, such as: a | b\nc"])
THEN = Circumstances(day="2026-11-22", scale=1.0, versions="attnserve 0.1.0", machine="2 cores")
TRIAL = Circumstances(day="2026-11-23", scale=0.01, versions="attnserve 0.1.0", machine="2 cores")
PAGE = f"# Page\n\n{BEGIN}{END}\n\nrest\n"


def crash(*_):
    raise RuntimeError("no server")


def run(*arguments):
    scenarios = {"good": lambda *_: PASSED, "bad": lambda *_: FAILED, "crashing": crash}
    return main(arguments, scenarios)


def test_the_exit_code_is_the_verdict(capsys):
    assert run("--only", "good") == 0
    assert run("--only", "good", "bad") == 1
    assert run() == 1
    output = capsys.readouterr().out
    assert "PASSED good" in output
    assert "FAILED bad" in output
    assert "FAILED crashing" in output
    assert "RuntimeError: no server" in output


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "1000"])
def test_scales_that_are_none(scale, capsys):
    with pytest.raises(SystemExit):
        run("--scale", scale)
    assert "--scale: expected a number > 0" in capsys.readouterr().err


def test_reports_and_rows_are_written(tmp_path):
    page, report = tmp_path / "soak.md", tmp_path / "report.json"
    page.write_text(PAGE)
    run("--json", str(report), "--record", str(page), "--scale", "0.5")
    document = json.loads(report.read_text())
    assert document["reports"]["good"]["figures"] == PASSED.figures
    assert document["circumstances"]["scale"] == 0.5
    lines = page.read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| `")] == ["| `good`", "| `bad`", "| `crashing`"]
    assert lines[0] == "# Page"
    assert lines[-1] == "rest"


def test_rows_of_other_scenarios_stay():
    order = ("one", "two", "three")
    page = replace_rows(PAGE, {"three": FAILED, "one": PASSED}, THEN, order)
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    then = "2026-11-22; attnserve 0.1.0; 2 cores"
    assert rows == [
        f"| `one` | passed | answers: 1,000; ms: 1.5 | {then} |",
        f"| `three` | **failed**: 3 failed requests, such as: a / b c | answers: 7 | {then} |",
    ]
    again = replace_rows(page, {"two": PASSED, "three": PASSED}, TRIAL, order)
    rows = [line for line in again.splitlines() if line.startswith("| `")]
    assert rows[0] == f"| `one` | passed | answers: 1,000; ms: 1.5 | {then} |"
    assert rows[2].endswith("| 2026-11-23, a trial at scale 0.01; attnserve 0.1.0; 2 cores |")
    assert len(rows) == 3


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match="--record: expected a page with <!-- last run -->"):
        replace_rows("# Page\n", {}, THEN, ())


def test_the_page_explains_every_scenario(request):
    page = (request.config.rootpath / "docs" / "soak.md").read_text("utf-8")
    assert BEGIN in page
    assert END in page
    explained = [line.split("`")[1] for line in page.partition(BEGIN)[0].splitlines() if line.startswith("| `")]
    assert explained[: len(SCENARIOS)] == list(SCENARIOS)
