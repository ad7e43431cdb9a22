"""The body of `DotProductAttention`; formula and source in `attnserve.models.attention.dot_product`."""

# ruff: noqa: ARG001 - every attention op has every attribute, `epsilon` too

from onnxscript import script

from attnserve.export.bodies.domain import DOMAIN, op
from attnserve.export.bodies.packed import AllowedKeys, GatherSteps, MergeGroups, ScatterSteps, Scores


@script(DOMAIN, default_opset=op)
def DotProductAttention(
    query, key, value, slots, causal: int, scale: float, epsilon: float, window: int, softcap: float
):
    """softmax(scale * q.k) v over the allowed keys of each sequence; a row without any is 0."""
    scores = Scores(GatherSteps(query, slots), GatherSteps(key, slots), scale=scale, softcap=softcap)
    allowed = AllowedKeys(slots, query, causal=causal, window=window)
    # The lowest finite number, not -inf, which would turn a row without allowed keys into NaN. Such a row comes out
    # uniform here, so its output is selected away below.
    weights = op.Softmax(op.Where(allowed, scores, op.Constant(value_float=-3.4028234e38)), axis=-1)
    values = op.Unsqueeze(GatherSteps(value, slots), op.Constant(value_ints=[2]))
    attended = op.MatMul(weights, values)
    has_key = op.Cast(op.ReduceMax(op.Cast(allowed, to=1), op.Constant(value_ints=[-1]), keepdims=1), to=9)
    return ScatterSteps(MergeGroups(op.Where(has_key, attended, 0.0)), slots, value)
