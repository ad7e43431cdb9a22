"""The kernel of AttentionStatistics beyond its body: `tests/conformance` holds both to the formulas."""

from typing import Any

import numpy as np
import pytest

from attnserve.describing import STATISTICS_OP
from attnserve.export.describing import make_graph
from tests.conformance.implementations import KERNELS
from tests.conformance.test_statistics import make_feeds, run
from tests.kernels.library import build_library


def test_no_rows_have_no_statistics() -> None:
    found = run(KERNELS[-1], "softmax", make_feeds(5, steps=np.empty(0, np.int64)))
    assert found.pop("received").tolist() == [[0.0] * 5] * 3
    assert {array.shape for array in found.values()} == {(3, 0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": np.ones((3, 5, 7))}, r"key: expected \[3, 5, 8\], got \[3, 5, 7\]"),
        ({"key": np.ones((2, 5, 8))}, r"key: expected \[3, 5, 8\], got \[2, 5, 8\]"),
        ({"token": [0, 1, 2, 3]}, r"token: expected \[5\], got \[4\]"),
        ({"token": [0, 1, 2, 3, 2**31]}, "token: expected numbers from 0 to 2147483647, got 2147483648"),
        ({"step": [0, 1]}, r"step: expected \[5\], got \[2\]"),
        ({"step": [0, 1, 2, 3, 5]}, "step: expected numbers from 0 to 4, got 5"),
        ({"first_key": [0, -1, 2, 3, 4]}, "first_key: expected numbers from 0 to 4, got -1"),
        ({"last_key": [0, 1, 2, 3, 2**60]}, "last_key: expected numbers from 0 to 4, got 1152921504606846976"),
        ({"scale": float("nan")}, "scale: expected a finite number, got nan"),
    ],
    ids=str,
)
def test_inputs_that_do_not_belong_together(changes: dict[str, Any], message: str) -> None:
    feeds = make_feeds(5)
    feeds |= {name: np.array(value, feeds[name].dtype) for name, value in changes.items()}
    with pytest.raises(Exception, match=f"{STATISTICS_OP}: {message}"):
        run(KERNELS[-1], "softmax", feeds)


def test_a_weighting_that_is_none() -> None:
    build_library()
    model = make_graph("softmax")
    model.graph.node[0].attribute[0].s = b"linear"
    with pytest.raises(Exception, match=f"{STATISTICS_OP}: weighting: expected expressive or softmax, got linear"):
        KERNELS[-1].open(model)
