from pathlib import Path

import pytest

from attnserve.models.recipes.summary import Measure
from attnserve.models.studies.runs import arguments_of, log_of
from attnserve.models.studies.study import Cell, Figure, Study, Table, with_seed

SMALL = "--symbols 3 --delay 2 --width 8 --steps 4 --batch 4"
ROWS = {"expressive": f"{SMALL} --variant expressive", "dot-product": f"{SMALL} --variant dot_product"}


@pytest.fixture
def study() -> Study:
    """Two models and two seeds, seconds to train; a table twice, as studies share runs."""
    measures = (Measure(header="accuracy, %", column="accuracy", kind="outcome"),)
    table = Table(title="Small models", rows=ROWS, measures=measures, shows="Nothing.")
    figure = Figure(
        name="small",
        title="Small models",
        vertical="accuracy, %",
        groups={"(3, 2)": {name: Cell(options=options, column="accuracy") for name, options in ROWS.items()}},
        factor=100.0,
        line=33.3,
    )
    return Study(
        name="small",
        recipe="nt",
        title="Small",
        setup="Two seeds.",
        tables=(table, table),
        figures=(figure,),
        seeds=(5, 6),
    )


@pytest.fixture
def logs(study: Study, tmp_path: Path) -> Path:
    """A folder with the log of `study`, of made-up numbers."""
    from attnserve.models.recipes.command import RECIPES

    log, accuracies = log_of(study, tmp_path / "logs"), iter([1.0, 0.25, 0.5, 0.75])
    for options in ROWS.values():
        for seed in study.seeds:
            command = RECIPES["nt"].command(arguments_of(study, with_seed(options, seed)))
            log.add(command, seed, {"accuracy": next(accuracies)})
    return tmp_path / "logs"
