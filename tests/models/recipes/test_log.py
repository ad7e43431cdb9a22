from pathlib import Path

import pytest

from attnserve.models.recipes.log import Log


def test_rows_are_found_by_their_command_by_whoever_opens_the_log(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.csv"
    log = Log(path)
    assert "a, 'b'" not in log
    log.add("a, 'b'", 3, {"accuracy": 1 / 3, "steps": 1200, "never": None})
    log.add("c", 4, {"accuracy": 1.0, "steps": 7, "never": 2.0})

    for some in (log, Log(path)):
        assert list(some.rows) == ["a, 'b'", "c"]
        row = dict(some.rows["a, 'b'"])
        assert row.pop("trained_with").startswith("python 3.")
        assert row == {"command": "a, 'b'", "seed": "3", "accuracy": "0.333333", "steps": "1200", "never": ""}
    assert path.read_text().splitlines()[0] == "command,seed,accuracy,steps,never,trained_with"
    assert len(path.read_text().splitlines()) == 3


def test_other_columns_are_refused_and_written_nowhere(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.csv")
    log.add("a", 0, {"accuracy": 1.0})
    before = log.path.read_bytes()
    with pytest.raises(ValueError, match=r"^log: .*: expected the columns .*'accuracy'.*, got .*'bits'"):
        Log(log.path).add("b", 0, {"bits": 1.0})
    assert log.path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", r"expected the columns command, seed first, got \['a', 'b'\]"),
        ("", r"expected the columns command, seed first, got \[\]"),
        ("command,seed,accuracy,trained_with\nx,1\n", "line 2: expected 4 cells, got 2"),
    ],
)
def test_files_that_are_no_logs_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^log: .*{message}"):
        Log(path)
