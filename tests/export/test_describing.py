"""The graphs of statistics that are run are those that this code writes."""

from pathlib import Path

import pytest

from attnserve.describing import statistics_file
from attnserve.export.describing import write_graphs
from attnserve.export.weights import WEIGHTS


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_files_are_up_to_date(weighting: str, tmp_path: Path) -> None:
    write_graphs(tmp_path)
    written = (tmp_path / statistics_file(weighting).name).read_bytes()
    assert written == statistics_file(weighting).read_bytes(), "python -m attnserve.export.describing attnserve"
