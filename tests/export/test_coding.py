"""The coding graphs that the service runs are those that this code writes."""

from pathlib import Path

import pytest

from attnserve.export.coding import CODINGS, write_codings

SERVICE = Path(__file__).resolve().parents[2] / "service" / "formats"


@pytest.mark.parametrize("name", CODINGS)
def test_files_are_up_to_date(name: str, tmp_path: Path) -> None:
    write_codings(tmp_path)
    written, served = ((folder / f"{name}.onnx").read_bytes() for folder in (tmp_path, SERVICE))
    assert written == served, "python -m attnserve.export.coding service/formats"


def test_there_are_no_others() -> None:
    assert {path.stem for path in SERVICE.glob("*.onnx")} == set(CODINGS)
