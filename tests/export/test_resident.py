"""The graphs that read captures on a device are those that this code writes, and say what their formulas do."""

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from attnserve.describing import statistics_file
from attnserve.export.resident import GRAPHS, make_finite, make_lay_out, make_units, write_graphs
from attnserve.export.weights import WEIGHTS
from attnserve.resident import DTYPES, capture_file


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_files_are_up_to_date(graph: str, dtype: str, tmp_path: Path) -> None:
    write_graphs(tmp_path)
    written = (tmp_path / capture_file(graph, dtype).name).read_bytes()
    assert written == capture_file(graph, dtype).read_bytes(), "python -m attnserve.export.resident attnserve"


def test_there_are_no_others() -> None:
    folder = statistics_file("softmax").parent
    captures = {capture_file(graph, dtype) for graph in GRAPHS for dtype in DTYPES}
    assert set(folder.glob("*.onnx")) == captures | {statistics_file(weighting) for weighting in WEIGHTS}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_laid_out_by_head(dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(7, 4, 3)).astype(dtype)
    rows, heads = np.array([5, 1, 1]), np.array([3, 0, 3])
    (by_head,) = ReferenceEvaluator(make_lay_out(dtype)).run(None, {"values": values, "rows": rows, "heads": heads})
    assert by_head.dtype == np.float32
    np.testing.assert_array_equal(by_head, values[rows][:, heads].transpose(1, 0, 2).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(7,), (7, 4), (7, 4, 3)], ids=str)
def test_a_number_that_is_not_finite_is_found(dtype: str, number: float, shape: tuple[int, ...]) -> None:
    graph = ReferenceEvaluator(make_finite(dtype))
    # As large as they come: no sum of them may overflow.
    values = np.full(shape, np.finfo(dtype).max)
    assert graph.run(None, {"values": values, "rows": np.arange(7)})[0]
    values[(4, *(0 for _ in shape[1:]))] = number
    with np.errstate(invalid="ignore"):
        assert not graph.run(None, {"values": values, "rows": np.arange(7)})[0]
    # Of somebody else.
    assert graph.run(None, {"values": values, "rows": np.array([0, 1, 5])})[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_at_length_1_are_added_up(dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(7, 6)).astype(dtype)
    values[2] = 0
    rows = np.array([6, 2, 0, 0])
    total, num_rows = ReferenceEvaluator(make_units(dtype)).run(None, {"values": values, "rows": rows})
    wide = values[[6, 0, 0]].astype(np.float64)
    np.testing.assert_allclose(total, (wide / np.linalg.norm(wide, axis=1, keepdims=True)).sum(0), atol=1e-6)
    assert num_rows == 3
