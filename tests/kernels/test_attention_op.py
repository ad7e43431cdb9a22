"""Whatever a node is given, it answers or says what is wrong; it does not end the process."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from attnserve.bundle import OP_DOMAIN
from tests.conformance.implementations import one_node_model, open_in_onnx_runtime
from tests.kernels.library import build_library

OPS = ("ExpressiveAttention", "DotProductAttention")
ATTRIBUTES = {"causal": 1, "scale": 0.5, "epsilon": 0.0, "window": 0, "softcap": 0.0}
SHAPES = {"query": (5, 4, 8), "key": (5, 2, 8), "value": (5, 2, 3)}
SLOTS = [[0, 1, 2], [3, 4, 5]]

every_op = pytest.mark.parametrize("op", OPS)


def run(op: str, shapes: dict[str, tuple[int, ...]], slots: object, **attributes: float) -> NDArray[np.float32]:
    feeds = {name: np.ones({**SHAPES, **shapes}[name], np.float32) for name in SHAPES}
    model = one_node_model(op, {**ATTRIBUTES, **attributes}, onnx.TensorProto.FLOAT)
    # Of any rank: what is fed is judged by the kernel, not by ONNX Runtime.
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.ClearField("shape")
    return open_in_onnx_runtime(model, build_library())({**feeds, "slots": np.array(slots, np.int64)})[0]


@every_op
def test_what_is_right_is_answered(op: str) -> None:
    np.testing.assert_allclose(run(op, {}, SLOTS), np.ones((5, 4, 3)), rtol=0, atol=1e-6)


@every_op
@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[-1, 0, 1], [2, 3, 4]], r"slots\[0, 0\]: expected a row from 0 to 5, got -1"),
        ([[0, 1, 2], [3, 4, 6]], r"slots\[1, 2\]: expected a row from 0 to 5, got 6"),
        ([[2**62, 1, 2]], r"slots\[0, 0\]: expected a row from 0 to 5, got 4611686018427387904"),
        ([[-(2**63), 1, 2]], r"slots\[0, 0\]: expected a row from 0 to 5, got -9223372036854775808"),
        ([[0, 2, 3]], r"slots\[0, 1\]: expected one ascending run of rows and then 5 only, got 2"),
        ([[1, 0, 5]], r"slots\[0, 1\]: expected one ascending run of rows and then 5 only, got 0"),
        ([[0, 0, 5]], r"slots\[0, 1\]: expected one ascending run of rows and then 5 only, got 0"),
        ([[5, 0, 1]], r"slots\[0, 1\]: expected one ascending run of rows and then 5 only, got 0"),
        ([[0, 5, 2]], r"slots\[0, 2\]: expected one ascending run of rows and then 5 only, got 2"),
        ([[0, 1, 2], [2, 3, 4]], r"slots\[1, 0\]: expected a row of no other sequence, got 2"),
        ([0, 1, 2], r"slots: expected 2 dimensions, got \[3\]"),
    ],
)
def test_slots_that_no_packer_makes(op: str, slots: object, message: str) -> None:
    with pytest.raises(Exception, match=f"{op}: {message}"):
        run(op, {}, slots)


@every_op
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"query": (5, 3, 8)}, "key: expected a number of heads that divides 3, got 2"),
        ({"key": (5, 0, 8), "value": (5, 0, 3)}, "key: expected a number of heads that divides 4, got 0"),
        ({"key": (4, 2, 8)}, r"key: expected \[5, 2, 8\], got \[4, 2, 8\]"),
        ({"key": (5, 2, 7)}, r"key: expected \[5, 2, 8\], got \[5, 2, 7\]"),
        ({"value": (6, 2, 3)}, r"value: expected \[5, 2, 3\], got \[6, 2, 3\]"),
        ({"value": (5, 4, 3)}, r"value: expected \[5, 2, 3\], got \[5, 4, 3\]"),
        ({"query": (5, 32)}, r"query: expected 3 dimensions, got \[5, 32\]"),
        ({"value": (5, 2, 3, 1)}, r"value: expected 3 dimensions, got \[5, 2, 3, 1\]"),
        ({"key": ()}, r"key: expected 3 dimensions, got \[\]"),
    ],
)
def test_shapes_that_do_not_belong_together(op: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(Exception, match=f"{op}: {message}"):
        run(op, shapes, SLOTS)


@every_op
@pytest.mark.parametrize(
    ("shapes", "slots"),
    [
        ({name: (0, *shape[1:]) for name, shape in SHAPES.items()}, np.zeros((0, 0))),
        ({name: (0, *shape[1:]) for name, shape in SHAPES.items()}, np.zeros((2, 3))),
        ({}, np.zeros((0, 3))),
        ({}, np.zeros((2, 0))),
        ({}, [[5, 5, 5]]),
        ({"query": (5, 0, 8)}, SLOTS),
        ({"value": (5, 2, 0)}, SLOTS),
        # Longer than a tile.
        ({"query": (300, 0, 8), "key": (300, 2, 8), "value": (300, 2, 3)}, [range(300)]),
        ({"query": (300, 4, 8), "key": (300, 2, 8), "value": (300, 2, 0)}, [range(300)]),
    ],
    ids=str,
)
def test_nothing_to_attend_to_is_nothing_or_zero(op: str, shapes: dict[str, tuple[int, ...]], slots: object) -> None:
    sizes = {**SHAPES, **shapes}
    output = run(op, shapes, slots)
    assert output.shape == (*sizes["query"][:2], sizes["value"][2])
    assert (output == 0).all()


def test_keys_without_channels_have_scores_of_zero() -> None:
    empty = {"query": (5, 4, 0), "key": (5, 2, 0)}
    assert (run("ExpressiveAttention", empty, SLOTS) == 0).all()
    np.testing.assert_allclose(run("DotProductAttention", empty, SLOTS), np.ones((5, 4, 3)), rtol=0, atol=1e-6)


@every_op
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale": float("nan")}, "scale: expected a finite number, got nan"),
        ({"epsilon": float("inf")}, "epsilon: expected a finite number >= 0, got inf"),
        ({"epsilon": -1.0}, "epsilon: expected a finite number >= 0, got -1"),
        ({"softcap": -2.0}, "softcap: expected a finite number >= 0, got -2"),
        ({"window": -1}, "window: expected a number >= 0, got -1"),
    ],
)
def test_attributes_that_mean_nothing(op: str, attributes: dict[str, float], message: str) -> None:
    with pytest.raises(Exception, match=f"{op}: {message}"):
        run(op, {}, SLOTS, **attributes)


@every_op
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_node_that_lacks_an_attribute_is_refused(op: str, name: str) -> None:
    # Without the body, whose declaration would have onnx notice it.
    attributes = {key: value for key, value in ATTRIBUTES.items() if key != name}
    model = one_node_model(op, ATTRIBUTES, onnx.TensorProto.FLOAT)
    del model.functions[:]
    del model.graph.node[:]
    model.graph.node.append(
        helper.make_node(op, ["query", "key", "value", "slots"], ["output"], domain=OP_DOMAIN, **attributes)
    )
    with pytest.raises(Exception, match=name):
        open_in_onnx_runtime(model, build_library())
