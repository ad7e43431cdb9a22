"""The body of `ExpressiveAttention`; formula and source in `attnserve.models.attention.expressive`."""

from onnxscript import script

from attnserve.export.bodies.domain import DOMAIN, op
from attnserve.export.bodies.packed import AllowedKeys, GatherSteps, MergeGroups, ScatterSteps, Scores


@script(DOMAIN, default_opset=op)
def ExpressiveAttention(
    query, key, value, slots, causal: int, scale: float, epsilon: float, window: int, softcap: float
):
    """Output u / (epsilon + sum u) v with u = z^2 / (1 + z^2), over the allowed keys; a row with sum 0 is 0."""
    scores = Scores(GatherSteps(query, slots), GatherSteps(key, slots), scale=scale, softcap=softcap)
    allowed = AllowedKeys(slots, query, causal=causal, window=window)
    # 2^23: beyond it 1 + z^2 rounds to z^2 in float32; without the clamp z^2 overflows and inf / inf is NaN.
    clamped = op.Clip(scores, op.Constant(value_float=-8388608.0), op.Constant(value_float=8388608.0))
    square = clamped * clamped
    # Masked by select, after the square: a large negative fill before it would give masked keys the largest weight.
    similarity = op.Where(allowed, square / (square + 1.0), 0.0)
    total = op.ReduceSum(similarity, op.Constant(value_ints=[-1]), keepdims=1) + op.Constant(value_float=epsilon)
    values = op.Unsqueeze(GatherSteps(value, slots), op.Constant(value_ints=[2]))
    # Divided after the product with the values: V columns per row instead of N.
    attended = op.MatMul(similarity, values) / op.Where(total > 0.0, total, 1.0)
    return ScatterSteps(MergeGroups(attended), slots, value)
