"""The report as its reader has it, and the page it goes to."""

import pytest

from benchmarks.gpu.findings import Finding, Outcome
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.report import (
    BEGIN,
    END,
    ON_CPU,
    check_page,
    explain_unusable,
    format_part,
    read_circumstances,
    record,
    replace_sections,
)
from tests.checkout import ROOT

CHECKUP = {
    "attnserve": "0.1.0",
    "machine": {"python": "3.11.7, CPython", "processor": "a CPU", "num_cores": 2, "num_machine_cores": 16},
    "onnxruntime": {"version": "1.31.1", "cuda": "13.0"},
    "driver": {
        "version": "580.1",
        "cuda": "13.0",
        "gpus": [{"name": "NVIDIA X", "memory_bytes": 80 * 2**30, "capability": "9.0"}],
    },
    "packages": {"numpy": "2.4.6", "torch": "2.13.0+cu130", "onnx": "1.23.2"},
    "unusable": {"cpu": None, "cuda": "ONNX Runtime fell back to the CPU"},
    "faults": ["device cuda: ONNX Runtime fell back to the CPU; without libcudnn.so.9: pip install 'attnserve[gpu]'"],
}
THEN = read_circumstances(CHECKUP, "cuda", "2026-11-28", "commit abc")
PAGE = f"# Page\n\n{BEGIN}\nNothing yet.\n\n{END}\n\nrest\n"
FINDINGS = (
    Finding(cells={"model": "a|b", "x": "1"}),
    Finding(cells={"model": "c", "y": "2"}, broken=("too far\nby 2",)),
)


def section(name, **changed):
    outcome = Outcome(**{"findings": FINDINGS, "seconds": 12.3, **changed})
    return format_part(name, "All is well.", outcome, "cuda", THEN)


def test_circumstances_of_a_gpu():
    assert str(THEN) == (
        "2026-11-28; commit abc; attnserve 0.1.0, onnxruntime 1.31.1, numpy 2.4.6, torch 2.13.0+cu130, "
        "Python 3.11.7, CPython; NVIDIA X, 80 GiB, compute capability 9.0; driver 580.1, up to CUDA 13.0; "
        "ONNX Runtime built for CUDA 13.0; 2 of 16 cores, a CPU"
    )
    assert "NVIDIA" not in str(read_circumstances(CHECKUP, "cpu", "2026-11-28", "commit abc"))


def test_a_device_that_cannot_be_used():
    assert "libcudnn" in explain_unusable(CHECKUP, "cuda")
    assert explain_unusable(CHECKUP, "cpu") is None
    assert explain_unusable(CHECKUP | {"faults": []}, "cuda") == "ONNX Runtime fell back to the CPU"


def test_a_part():
    assert section("check").splitlines() == [
        "### `check`: **failed**",
        "",
        "All is well.",
        "",
        "| model | x | y | verdict |",
        "| --- | --- | --- | --- |",
        "| a/b | 1 |  | passed |",
        "| c |  | 2 | **failed**: too far by 2 |",
        "",
        f"12 s; {THEN}",
    ]


def test_a_part_that_was_cut_short_or_is_a_trial():
    assert "**Not whole: cut short after 60 s.**" in section("check", cut="cut short after 60 s")
    outcome = Outcome(findings=FINDINGS[:1], seconds=1.0)
    trial = format_part("check", "All is well.", outcome, "cpu", THEN)
    assert ON_CPU in trial
    assert ON_CPU not in section("check")


def test_sections_of_other_parts_stay():
    order = ("one", "two", "three")
    page = replace_sections(PAGE, {"three": section("three"), "one": section("one")}, order)
    assert "Nothing yet." not in page
    again = replace_sections(page, {"two": section("two"), "three": section("three", findings=FINDINGS[:1])}, order)
    assert [line for line in again.splitlines() if line.startswith("### ")] == [
        "### `one`: **failed**",
        "### `two`: **failed**",
        "### `three`: passed",
    ]
    assert again.startswith("# Page\n")
    assert again.endswith(f"{END}\n\nrest\n")
    assert replace_sections(again, {}, order) == again


def test_pages_without_a_place(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(ValueError, match="--record: expected a page, got"):
        check_page(page)
    page.write_text("# Page\n")
    with pytest.raises(ValueError, match="--record: expected a page with <!-- proofs -->"):
        record(page, {"check": section("check")}, PARTS)


def test_the_page_has_a_place_and_explains_every_part():
    page = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    check_page(ROOT / "docs" / "gpu.md")
    explained = [line.split("`")[1] for line in page.partition(BEGIN)[0].splitlines() if line.startswith("| `")]
    assert explained[-len(PARTS) :] == list(PARTS)
