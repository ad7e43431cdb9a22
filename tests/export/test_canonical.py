"""Canonical graphs are the same in every process, and compute what they did."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from attnserve.export.canonical import canonicalise
from attnserve.export.weights import NORMALISERS, ROWS, WEIGHTS

pytestmark = pytest.mark.export

HASHES = """
import hashlib
from attnserve.export.canonical import canonicalise
from attnserve.export.weights import NORMALISERS, ROWS, WEIGHTS
for function in (*WEIGHTS.values(), *NORMALISERS.values(), *ROWS.values()):
    print(hashlib.sha256(canonicalise(function.to_model_proto()).SerializeToString()).hexdigest())
"""


def test_they_are_the_same_in_every_process() -> None:
    # Sets of strings are ordered by the seed; onnxscript keeps the states of a loop in one. 1 and 2 differ.
    hashes = [
        subprocess.run(
            [sys.executable, "-c", HASHES],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert hashes[0] == hashes[1]
    assert len(hashes[0].split()) == 3 * len(WEIGHTS)


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("functions", [WEIGHTS, NORMALISERS, ROWS], ids=["weights", "normaliser", "rows"])
def test_they_compute_what_they_did(weighting: str, functions: dict) -> None:
    plain = functions[weighting].to_model_proto()
    canonical = canonicalise(functions[weighting].to_model_proto())
    onnx.checker.check_model(canonical, full_check=True)
    for side in ("input", "output"):
        assert list(getattr(canonical.graph, side)) == list(getattr(plain.graph, side))
    generator = np.random.default_rng(0)
    # Three blocks of keys: the loop goes round more than once.
    feeds = {
        "query": generator.normal(size=(2, 4, 8)),
        "key": generator.normal(size=(2, 2500, 8)),
        "first_key": np.array([0, 0, 900, 1500]),
        "last": np.array([0, 1024, 2100, 2499]),
        "scale": np.array(0.3),
        "softcap": np.array(0.0),
        "epsilon": np.array(0.01),
        "normaliser": generator.uniform(3, 9, size=(2, 4)),
    }
    feeds = {name: array if array.dtype == np.int64 else array.astype(np.float32) for name, array in feeds.items()}
    feeds = {entry.name: feeds[entry.name] for entry in plain.graph.input}
    expected, answer = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds) for model in (plain, canonical)
    )
    for one, other in zip(answer, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # Plain numpy: it warns of infinities that a select drops right afterwards.
    with np.errstate(all="ignore"):
        second = ReferenceEvaluator(canonical).run(None, feeds)
    for one, other in zip(second, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_order_and_names_do_not_depend_on_those_before() -> None:
    def build(flipped: bool) -> onnx.ModelProto:
        names = ["b", "a"] if flipped else ["a", "b"]
        nodes = [
            onnx.helper.make_node("Neg", ["x"], [names[0]], name="n7"),
            onnx.helper.make_node("Abs", ["x"], [names[1]]),
            onnx.helper.make_node("Exp", ["x"], ["nobody_reads_it"]),
        ]
        sub = onnx.helper.make_node("Sub", names, ["y"])
        nodes = [*reversed(nodes), sub] if flipped else [*nodes, sub]
        entries = [onnx.helper.make_tensor_value_info(name, 1, ["N"]) for name in ("x", "y")]
        return onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", entries[:1], entries[1:]))

    assert canonicalise(build(True)) == canonicalise(build(False))
    assert [node.op_type for node in canonicalise(build(True)).graph.node] == ["Neg", "Abs", "Sub"]
