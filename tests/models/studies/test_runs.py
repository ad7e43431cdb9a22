from pathlib import Path

import pytest

from attnserve.models.studies.runs import log_of, rows_of, run_missing
from attnserve.models.studies.study import Study


def test_only_what_the_log_lacks_is_run(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "logs"
    assert run_missing(study, folder) == 4
    log = log_of(study, folder)
    assert [row["seed"] for row in log.rows.values()] == ["5", "5", "6", "6"], "seed by seed, so that all grow alike"

    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert run_missing(study, folder) == 1
    # The same run gives the same numbers; only its time differs.
    again = log_of(study, folder)
    assert again.rows.keys() == log.rows.keys()
    for command, row in again.rows.items():
        assert {**row, "cpu_seconds": ""} == {**log.rows[command], "cpu_seconds": ""}
    assert run_missing(study, folder) == 0


def test_runs_are_read_seed_by_seed(study: Study, logs: Path) -> None:
    options = study.tables[0].rows["expressive"]
    assert [run["accuracy"] for run in rows_of(study, log_of(study, logs), options)] == ["1", "0.25"]

    log = log_of(study, logs)
    log.rows.popitem()
    with pytest.raises(
        ValueError, match=r"lacks a run; `attnserve study run small` adds it: attnserve train nt .*--seed 6"
    ):
        rows_of(study, log, study.tables[0].rows["dot-product"])
