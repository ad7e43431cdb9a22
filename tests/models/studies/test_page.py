from pathlib import Path

import pytest

from attnserve.cli import main
from attnserve.models.recipes.log import Log
from attnserve.models.studies.page import render_table
from attnserve.models.studies.runs import command_of, log_of
from attnserve.models.studies.study import Study
from attnserve.models.studies.table import STUDIES

ROOT = Path(__file__).parents[3]


def test_the_committed_page_is_that_of_the_committed_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--logs", str(ROOT / "results"), "--checkpoints", str(ROOT / "checkpoints"), "--docs", str(tmp_path)]
    assert main(["study", "page", *folders]) == 0

    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in written} >= {"results.md", "zoo.md", "leak.svg"}
    for path in sorted(written):
        assert (ROOT / "docs" / path).read_bytes() == (tmp_path / path).read_bytes(), f"{path}: attnserve study page"
    # Nothing is left of figures that are gone.
    assert {path.relative_to(ROOT / "docs") for path in (ROOT / "docs" / "results").iterdir()} <= written


@pytest.mark.parametrize("name", STUDIES)
def test_every_line_of_a_log_is_a_run_of_its_study(name: str) -> None:
    study = STUDIES[name]
    log = Log(ROOT / "results" / f"{name}.csv")

    assert set(log.rows) == {command_of(study.recipe, run) for run in study.runs()}
    for command, row in log.rows.items():
        assert f"--seed {row['seed']}" in command


def test_a_row_of_a_table_sums_up_its_seeds(study: Study, logs: Path) -> None:
    assert render_table(study, log_of(study, logs), study.tables[0]) == (
        "|             | accuracy, %          |\n"
        "| ----------- | -------------------- |\n"
        "| expressive  | 62.5 (25.0 to 100.0) |\n"
        "| dot-product | 62.5 (50.0 to 75.0)  |\n"
    )


def test_a_page_of_logs_that_lack_runs_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "page", "--logs", str(tmp_path / "none"), "--docs", str(tmp_path)]) == 1
    assert "nt.csv lacks a run; `attnserve study run nt` adds it: attnserve train nt" in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()
