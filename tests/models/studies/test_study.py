import pytest

from attnserve.models.studies.runs import arguments_of
from attnserve.models.studies.study import Study, with_seed
from attnserve.models.studies.table import STUDIES


def test_a_run_that_tables_share_is_one_run(study: Study) -> None:
    assert len(study.tables) == 2
    assert [run.split()[-1] for run in study.runs()] == ["5", "5", "6", "6"]


@pytest.mark.parametrize("name", STUDIES)
def test_studies_compare_what_they_say(name: str) -> None:
    study = STUDIES[name]

    assert study.name == name
    assert len(study.seeds) >= 5
    for table in study.tables:
        for options in table.rows.values():
            assert arguments_of(study, with_seed(options, 3)).seed == 3
        # One sentence or two below each: what it shows, and what it does not.
        assert table.shows.endswith(".")
    for figure in study.figures:
        names = [tuple(group) for group in figure.groups.values()]
        assert len(set(names)) == 1, "the same colours everywhere"
        shown = {options for table in study.tables for options in table.rows.values()}
        assert {cell.options for group in figure.groups.values() for cell in group.values()} <= shown
