"""What AttentionStatistics says is not computed once more. That both say the same is in `test_attention.py`."""

import json
from typing import Any

import numpy as np
import pytest

from attnserve.service.attention import compute_arrays
from attnserve.service.described import DESCRIBED
from attnserve.service.diagnostics import DIAGNOSTICS
from attnserve.service.preprocess import parse_attention
from attnserve.service.sequences import Reader
from attnserve.weighing import Weighing


def test_what_is_described_is_in_the_table() -> None:
    assert set(DESCRIBED) < DIAGNOSTICS.keys()


@pytest.mark.parametrize("weighing", ["bodies"], indirect=True)
@pytest.mark.parametrize(
    ("fields", "is_weighed"),
    [
        ({}, False),
        ({"diagnostics": list(DESCRIBED)}, False),
        ({"diagnostics": ["entropy", "negative"]}, True),
        ({"diagnostics": ["redundancy"]}, True),
        ({"diagnostics": ["mass"], "keys": [0]}, True),
        ({"diagnostics": ["induction"], "exclude_bos": True}, True),
        ({"diagnostics": ["duplicate_token"], "exclude_current_token": True}, True),
    ],
    ids=str,
)
def test_rows_are_weighed_only_for_what_the_op_does_not_say(
    weighing: Weighing,
    make_manifest: Any,
    answer_randomly: Any,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    is_weighed: bool,
) -> None:
    weighed = []
    weigh = Weighing.weigh

    def watch(self: Weighing, *arguments: Any, **options: Any) -> Any:
        weighed.append(arguments)
        return weigh(self, *arguments, **options)

    monkeypatch.setattr(Weighing, "weigh", watch)
    manifest = make_manifest()
    body = json.dumps({"sequences": [[1, 2, 1, 2, 1]], **fields}).encode()
    request = parse_attention(body, Reader(manifest))
    (arrays,) = compute_arrays(weighing, manifest.layers, request, answer_randomly(request, manifest))
    assert bool(weighed) == is_weighed
    assert all(np.isfinite(array).all() for array in arrays.values())
