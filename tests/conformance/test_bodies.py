"""The function bodies, op by op over the case grid, in everything that runs ONNX; the weights graphs are next door.

The oracle is PyTorch in float64, which test_laws.py and test_metric_laws.py hold to the formulas.
"""

import dataclasses
import inspect

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from numpy.typing import NDArray

from attnserve.export.bodies import BODIES, PARTS
from attnserve.export.lowering import lowered
from attnserve.export.weights import NORMALISERS, WEIGHTS
from attnserve.models import Attention, AttentionConfig
from attnserve.models.attention import VARIANTS, elliptical_metric
from attnserve.models.attention.elliptical import SCALINGS, SCOPES
from attnserve.models.attention.packed import attend
from tests.conformance.cases import (
    Array,
    AttentionCase,
    MetricCase,
    attention_case,
    attention_cases,
    layer_options,
    metric_cases,
    segments_of,
)
from tests.conformance.implementations import (
    IMPLEMENTATIONS,
    KERNELS,
    Feeds,
    Implementation,
    as_type,
    one_node_model,
    run_op,
)

ATTENTION_OPS = {variant.op: variant for variant in reversed(VARIANTS.values())}
METRIC_OPS = {variant.metric_op: variant for variant in VARIANTS.values() if variant.metric_op is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpCase:
    """One op with its inputs in float64, its attributes and PyTorch's way to the output."""

    op: str
    name: str
    case: AttentionCase | MetricCase

    @property
    def feeds(self) -> dict[str, NDArray[np.generic]]:
        names = ("query", "key", "value") if isinstance(self.case, AttentionCase) else ("value", "previous_value")
        return {name: getattr(self.case, name) for name in (*names, "slots")}

    @property
    def attributes(self) -> dict[str, float]:
        if isinstance(self.case, AttentionCase):
            return {**self.case.attributes, "causal": int(self.case.causal)}
        return {"prefix": int(self.case.scope == "prefix"), "mean": int(self.case.scaling == "mean")}

    @property
    def sees_the_past_only(self) -> bool:
        return self.case.causal if isinstance(self.case, AttentionCase) else self.case.scope == "prefix"

    def oracle(self, feeds: Feeds) -> Array:
        """PyTorch's float64 output for these very numbers."""
        tensors = {name: torch.from_numpy(array) for name, array in as_type(feeds, np.float64).items()}
        if isinstance(self.case, MetricCase):
            return elliptical_metric(**tensors, scope=self.case.scope, scaling=self.case.scaling).numpy()
        return attend(ATTENTION_OPS[self.op].weigh, **tensors, **self.case.attributes).numpy()

    def run(self, implementation: Implementation, feeds: Feeds) -> NDArray[np.floating]:
        return run_op(implementation, self.op, feeds, self.attributes)


CASES = [
    OpCase(op=op, name=f"{op}: {case.name}", case=case)
    for cases in (
        [(op, case) for op, variant in ATTENTION_OPS.items() for case in attention_cases(variant.weighting)],
        [(op, case) for op in METRIC_OPS for case in metric_cases()],
    )
    for op, case in cases
]

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS + KERNELS, ids=lambda one: one.name)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_causal_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.sees_the_past_only], ids=lambda case: case.name
)
every_case_with_mates = pytest.mark.parametrize(
    "case", [case for case in CASES if len(case.case.lengths) > 1], ids=lambda case: case.name
)


def change_rows(feeds: Feeds, rows: NDArray[np.bool_], to: float) -> dict[str, NDArray[np.generic]]:
    """The feeds with these rows of every input overwritten."""
    changed = {name: array.copy() for name, array in feeds.items()}
    for name in changed.keys() - {"slots"}:
        changed[name][rows] = to
    return changed


@every_implementation
@every_case
def test_bodies_agree_with_pytorch_in_float64(case: OpCase, implementation: Implementation) -> None:
    feeds = as_type(case.feeds, np.float32)
    output = case.run(implementation, feeds)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, case.oracle(feeds), rtol=0, atol=implementation.tolerance)


@every_implementation
@every_case_with_mates
def test_a_sequence_answers_as_if_it_were_alone(case: OpCase, implementation: Implementation) -> None:
    feeds = as_type(case.feeds, np.float32)
    together = case.run(implementation, feeds)
    for segment, length in zip(segments_of(case.case.lengths), case.case.lengths, strict=True):
        own = {name: array[segment] for name, array in feeds.items() if name != "slots"}
        alone = case.run(implementation, {**own, "slots": np.arange(length)[None]})
        np.testing.assert_allclose(together[segment], alone, rtol=0, atol=implementation.tolerance)


@every_implementation
@every_case_with_mates
def test_batch_mates_change_nothing_bit_for_bit(case: OpCase, implementation: Implementation) -> None:
    # NaN is the worst mate: nothing that touches it, not even with weight 0, stays a number.
    feeds = as_type(case.feeds, np.float32)
    before = case.run(implementation, feeds)
    for segment in segments_of(case.case.lengths):
        mates = np.ones(len(before), bool)
        mates[segment] = False
        after = case.run(implementation, change_rows(feeds, mates, np.nan))
        assert np.array_equal(after[segment], before[segment])


@every_implementation
@every_case
def test_rows_in_no_slot_are_never_read_and_come_out_zero(case: OpCase, implementation: Implementation) -> None:
    feeds = as_type(case.feeds, np.float32)
    before = case.run(implementation, feeds)
    # One such row before every sequence, and one at the end.
    starts = [segment.start for segment in segments_of(case.case.lengths)]
    places = [*starts, len(before)]
    widened = {name: np.insert(array, places, np.nan, axis=0) for name, array in feeds.items() if name != "slots"}
    moved = feeds["slots"] + np.arange(1, len(starts) + 1)[:, None]
    num_rows = len(before) + len(places)
    widened["slots"] = np.where(feeds["slots"] < len(before), moved, num_rows)
    after = case.run(implementation, widened)
    owned = np.isin(np.arange(num_rows), widened["slots"])
    assert np.array_equal(after[owned], before)
    assert (after[~owned] == 0).all()


@every_implementation
@every_causal_case
def test_the_future_changes_nothing_bit_for_bit(case: OpCase, implementation: Implementation) -> None:
    feeds = as_type(case.feeds, np.float32)
    before = case.run(implementation, feeds)
    step = np.concatenate([np.arange(length) for length in case.case.lengths])
    for last in range(max(case.case.lengths) - 1):
        after = case.run(implementation, change_rows(feeds, step > last, -37.5))
        assert np.array_equal(after[step <= last], before[step <= last])


@every_implementation
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("op", [op for op, variant in ATTENTION_OPS.items() if variant.weighting == "expressive"])
def test_rows_whose_scores_are_all_zero_are_exactly_zero(op: str, causal: bool, implementation: Implementation) -> None:
    for name in ("all-zero scores", "epsilon, all-zero scores"):
        direction = "causal" if causal else "bidirectional"
        (case,) = (case for case in CASES if case.name == f"{op}: {name}, {direction}")
        feeds = as_type(case.feeds, np.float32)
        output = case.run(implementation, feeds)
        zero = (case.oracle(feeds) == 0).all((1, 2))
        assert zero.any()
        assert not zero.all()
        assert (output[zero] == 0).all()


@every_implementation
@pytest.mark.parametrize("op", ATTENTION_OPS)
@pytest.mark.parametrize("gain", [1e-5, 1.0, 300.0])
def test_attention_in_float16_loses_no_more_than_its_own_rounding(
    op: str, gain: float, implementation: Implementation
) -> None:
    # Scores of about +-gain: in float16 their squares would be infinite above 256 and 0 below 1.7e-4.
    for causal in (True, False):
        case = attention_case("float16", (6, 1, 4), causal=causal, head_size=1, value_size=3, scale=1.0, num_heads=4)
        case.query[:] = gain * np.sign(case.query)
        case.key[:] = np.sign(case.key) * (1 + abs(case.key))
        assert_close_in_float16(OpCase(op=op, name=case.name, case=case), implementation)


@every_implementation
@pytest.mark.parametrize(
    "case", [case for case in CASES if isinstance(case.case, MetricCase)], ids=lambda case: case.name
)
def test_metrics_in_float16_lose_no_more_than_their_own_rounding(case: OpCase, implementation: Implementation) -> None:
    # Sums of changes beyond 65504, the largest float16.
    large = dataclasses.replace(case.case, value=case.case.value * 9000, previous_value=case.case.previous_value * 9000)
    assert_close_in_float16(dataclasses.replace(case, case=large), implementation)


def assert_close_in_float16(case: OpCase, implementation: Implementation) -> None:
    feeds = as_type(case.feeds, np.float16)
    output = case.run(implementation, feeds)
    assert output.dtype == np.float16
    exact = case.oracle(feeds)
    # Half a unit in the last place is 2^-11 of the number, or 2^-25 where it is tiny.
    np.testing.assert_allclose(output, exact, rtol=2**-11, atol=implementation.tolerance)


@every_implementation
@pytest.mark.parametrize("op", ATTENTION_OPS)
@pytest.mark.parametrize("gain", [1e12, 1e25])
def test_huge_scores_are_large_scores_and_no_more(op: str, gain: float, implementation: Implementation) -> None:
    # Squares overflow float32 at 1.8e19, and a masked key must stay below any score.
    for causal in (True, False):
        attention = attention_case("huge scores", (5, 1, 2), causal=causal, gain=gain)
        case = OpCase(op=op, name=attention.name, case=attention)
        feeds = as_type(case.feeds, np.float32)
        output = case.run(implementation, feeds)
        np.testing.assert_allclose(output, case.oracle(feeds), rtol=0, atol=implementation.tolerance)


@pytest.mark.parametrize("op", BODIES)
def test_bodies_compute_in_float32_whatever_the_inputs_are(op: str) -> None:
    # Asserted on the graph, because ONNX Runtime hides it: on a CPU it computes float16 nodes in float32.
    (case, *_) = (case for case in CASES if case.op == op)
    model = onnx.inliner.inline_local_functions(one_node_model(op, case.attributes, onnx.TensorProto.FLOAT16))
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    narrow = {node.op_type for node in model.graph.node if types.get(node.output[0]) == onnx.TensorProto.FLOAT16}
    assert narrow == {"CastLike", "Concat"}, "these only move numbers"
    computing = [node for node in model.graph.node if node.op_type in ("Mul", "MatMul", "Div", "Sub", "CumSum")]
    computing = [node for node in computing if types[node.output[0]] != onnx.TensorProto.INT64]
    assert computing
    assert {types[name] for node in computing for name in node.input[:1]} == {onnx.TensorProto.FLOAT}
    if op == "ExpressiveAttention":
        assert [node.input[0] == node.input[1] for node in computing if node.op_type == "Mul"].count(True) == 1


def test_every_op_of_every_variant_has_a_body_and_every_weighting_its_graphs() -> None:
    assert set(BODIES) == {*ATTENTION_OPS, *METRIC_OPS}
    weightings = {variant.weighting for variant in VARIANTS.values()}
    assert set(WEIGHTS) == weightings
    assert set(NORMALISERS) == weightings
    assert not {part.name for part in PARTS} & set(BODIES)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", VARIANTS)
def test_exported_nodes_say_what_the_layer_is_in_the_words_of_their_bodies(name: str, causal: bool) -> None:
    variant = VARIANTS[name]
    said = {"scale": 0.7, "epsilon": 0.01 if variant.weighting == "expressive" else 0.0, "window": 3, "softcap": 1.5}
    for options in layer_options(name, causal=causal):
        layer = Attention(AttentionConfig(variant=name, **said, **options), head_size=4, causal=causal)
        with lowered(layer):
            assert_declared(variant.op, layer.attend.attributes)
            assert layer.attend.attributes == {"causal": int(causal), **said}
            if variant.metric_op is not None:
                assert_declared(variant.metric_op, layer.measure.attributes)


def assert_declared(op: str, attributes: dict[str, float]) -> None:
    """Names and types are those of the body: a kernel that reads an integer does not find a float."""
    declared = inspect.get_annotations(BODIES[op].function)
    assert list(BODIES[op].to_function_proto().attribute) == list(declared)
    assert {name: type(value) for name, value in attributes.items()} == declared


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("scope", SCOPES)
def test_exported_metrics_sum_over_what_the_scope_says(scope: str, scaling: str) -> None:
    config = AttentionConfig(variant="elliptical", scope=scope, scaling=scaling)
    layer = Attention(config, head_size=4, causal=scope != "sequence")
    with lowered(layer):
        assert layer.measure.attributes == {"prefix": int(scope == "prefix"), "mean": int(scaling == "mean")}


def test_attention_ops_have_one_signature() -> None:
    # Bundles outlive code: what an attention op may be told was settled with version 1 of the domain.
    for op in ATTENTION_OPS:
        proto = BODIES[op].to_function_proto()
        assert list(proto.input) == ["query", "key", "value", "slots"]
        assert list(proto.attribute) == ["causal", "scale", "epsilon", "window", "softcap"]
        assert len(proto.output) == 1
